// The limit for a mediated vector add: the same work done natively, copies included.
//   nvcc -O3 -o native_vector_add bench/native_vector_add.cu && ./native_vector_add
// Prints one JSON object a line: kind, elements, seconds (median of the runs).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

__global__ void vector_add(const float *a, const float *b, float *c, size_t n)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        c[i] = a[i] + b[i];
}

static void check(cudaError_t code, const char *what)
{
    if (code != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
        exit(1);
    }
}

static double run(float *a, float *b, float *c, float *da, float *db, float *dc, size_t n)
{
    auto start = std::chrono::steady_clock::now();
    check(cudaMemcpy(da, a, n * 4, cudaMemcpyHostToDevice), "copy a");
    check(cudaMemcpy(db, b, n * 4, cudaMemcpyHostToDevice), "copy b");
    vector_add<<<1024, 256>>>(da, db, dc, n);
    check(cudaMemcpy(c, dc, n * 4, cudaMemcpyDeviceToHost), "copy c");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

static void measure(const char *kind, bool pinned, size_t n)
{
    float *host[3], *device[3];
    for (int i = 0; i < 3; i++) {
        check(cudaMalloc(&device[i], n * 4), "device memory");
        if (pinned)
            check(cudaMallocHost(&host[i], n * 4), "pinned memory");
        else
            host[i] = (float *)malloc(n * 4);
        for (size_t k = 0; k < n; k++)
            host[i][k] = (float)(k % 1024) * (i + 1);
    }
    std::vector<double> seconds;
    for (int i = 0; i < 7; i++)
        seconds.push_back(run(host[0], host[1], host[2], device[0], device[1], device[2], n));
    for (size_t k = 0; k < n; k++)
        if (host[2][k] != host[0][k] + host[1][k]) {
            fprintf(stderr, "wrong sum at %zu\n", k);
            exit(1);
        }
    std::sort(seconds.begin(), seconds.end());
    printf("{\"kind\":\"%s\",\"elements\":%zu,\"seconds\":%.6f}\n", kind, n, seconds[seconds.size() / 2]);
    for (int i = 0; i < 3; i++) {
        cudaFree(device[i]);
        pinned ? (void)cudaFreeHost(host[i]) : free(host[i]);
    }
}

int main()
{
    for (size_t n : {(size_t)1 << 20, (size_t)1 << 26}) {
        measure("native pinned", true, n);
        measure("native pageable", false, n);
    }
}
