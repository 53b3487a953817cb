// What `vgpu bench gpu` measures, done natively by the driver API.
//   nvcc -O2 -o native_gpu bench/native_gpu.cu -lcuda && ./native_gpu [LAUNCHES [REPEATS [BYTES...]]]
// Prints one JSON object a line: what, unit, median, p99.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include <cuda.h>

static const char *kernel =
    ".version 7.0\n.target sm_52\n.address_size 64\n.visible .entry nothing() { ret; }\n";

static void check(CUresult result, const char *what)
{
    if (result != CUDA_SUCCESS) {
        const char *name = "";
        cuGetErrorName(result, &name);
        fprintf(stderr, "%s: %s\n", what, name);
        exit(1);
    }
}
#define CHECK(call) check(call, #call)

typedef std::chrono::steady_clock Clock;

static double us_since(Clock::time_point start)
{
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

static double processor_us()
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void print(const std::string &what, const char *unit, std::vector<double> values)
{
    std::sort(values.begin(), values.end());
    size_t n = values.size(), middle = (n * 50 + 99) / 100, most = (n * 99 + 99) / 100;
    bool times = strcmp(unit, "us") == 0;
    printf("{\"what\":\"%s\",\"unit\":\"%s\",\"median\":%.3f,\"p99\":%.3f}\n", what.c_str(), unit,
           values[times ? middle - 1 : n - middle], values[times ? most - 1 : n - most]);
    fflush(stdout);
}

static std::vector<double> timed(int count, const std::function<void()> &work)
{
    std::vector<double> times;
    for (int i = 0; i < count; i++) {
        Clock::time_point start = Clock::now();
        work();
        times.push_back(us_since(start));
    }
    return times;
}

// Copies one after the other and one wait, as `vgpu bench gpu` has them.
static void rows_of_copies(CUdeviceptr device, char *to, char *back, size_t bytes, int repeats)
{
    const int row = 16;
    std::vector<double> up, down;
    for (int i = 0; i < repeats; i++) {
        Clock::time_point start = Clock::now();
        for (int k = 0; k < row; k++)
            CHECK(cuMemcpyHtoDAsync(device, to, bytes, 0));
        CHECK(cuCtxSynchronize());
        up.push_back(row * bytes / 1e3 / us_since(start));
        memset(back, 0, bytes);
        start = Clock::now();
        for (int k = 0; k < row; k++)
            CHECK(cuMemcpyDtoHAsync(back, device, bytes, 0));
        CHECK(cuCtxSynchronize());
        down.push_back(row * bytes / 1e3 / us_since(start));
        if (memcmp(to, back, bytes) != 0) {
            fprintf(stderr, "%zu bytes came back changed\n", bytes);
            exit(1);
        }
    }
    print("copies_up_" + std::to_string(bytes) + "_pinned", "GB/s", up);
    print("copies_down_" + std::to_string(bytes) + "_pinned", "GB/s", down);
}

static void copies(size_t bytes, int repeats, bool pinned)
{
    char *to, *back;
    if (pinned) {
        CHECK(cuMemHostAlloc((void **)&to, bytes, 0));
        CHECK(cuMemHostAlloc((void **)&back, bytes, 0));
    } else {
        to = (char *)malloc(bytes);
        back = (char *)malloc(bytes);
    }
    for (size_t i = 0; i < bytes; i++)
        to[i] = (char)(i % 251);
    CUdeviceptr device;
    CHECK(cuMemAlloc(&device, bytes));
    std::vector<double> up, down;
    for (int i = 0; i <= repeats; i++) {
        Clock::time_point start = Clock::now();
        CHECK(cuMemcpyHtoD(device, to, bytes));
        CHECK(cuCtxSynchronize());
        double sent = us_since(start);
        memset(back, 0, bytes);
        start = Clock::now();
        CHECK(cuMemcpyDtoH(back, device, bytes));
        double came = us_since(start);
        if (memcmp(to, back, bytes) != 0) {
            fprintf(stderr, "%zu bytes came back changed\n", bytes);
            exit(1);
        }
        if (i > 0) {
            up.push_back(bytes / 1e3 / sent);
            down.push_back(bytes / 1e3 / came);
        }
    }
    std::string suffix = std::to_string(bytes) + (pinned ? "_pinned" : "");
    print("copy_up_" + suffix, "GB/s", up);
    print("copy_down_" + suffix, "GB/s", down);
    if (pinned)
        rows_of_copies(device, to, back, bytes, repeats);
    CHECK(cuMemFree(device));
    if (pinned) {
        cuMemFreeHost(to);
        cuMemFreeHost(back);
    } else {
        free(to);
        free(back);
    }
}

int main(int argc, char **argv)
{
    int launches = argc > 1 ? atoi(argv[1]) : 1000, repeats = argc > 2 ? atoi(argv[2]) : 7;
    std::vector<size_t> sizes;
    for (int i = 3; i < argc; i++)
        sizes.push_back(strtoull(argv[i], NULL, 10));
    if (sizes.empty())
        sizes = {(size_t)16 << 20, (size_t)256 << 20};

    // What a program pays once: the first of them loads the driver as well.
    Clock::time_point start = Clock::now();
    CHECK(cuInit(0));
    CUdevice gpu;
    CHECK(cuDeviceGet(&gpu, 0));
    CUcontext context;
    CHECK(cuDevicePrimaryCtxRetain(&context, gpu));
    CHECK(cuCtxSetCurrent(context));
    print("session_open", "us", {us_since(start)});

    CUmodule module;
    CUfunction nothing;
    CHECK(cuModuleLoadData(&module, kernel));
    CHECK(cuModuleGetFunction(&nothing, module, "nothing"));
    CUstream stream;
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    auto launch = [&] { CHECK(cuLaunchKernel(nothing, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL)); };
    auto wait = [&] { CHECK(cuStreamSynchronize(stream)); };
    launch();
    wait();

    std::vector<double> issued, chains;
    for (int i = 0; i < repeats; i++) {
        Clock::time_point start = Clock::now();
        double processor = processor_us();
        for (int k = 0; k < launches; k++)
            launch();
        issued.push_back((processor_us() - processor) / launches);
        wait();
        chains.push_back(us_since(start));
    }
    print("launch_processor", "us", issued);
    print("launch_chain_" + std::to_string(launches), "us", chains);
    print("launch_synchronize", "us", timed(launches, [&] { launch(); wait(); }));

    CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (int i = 0; i < 20; i++)
        launch();
    CUgraph graph;
    CUgraphExec exec;
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK(cuGraphInstantiate(&exec, graph, 0));
    print("graph_of_20", "us", timed((launches + 9) / 10, [&] { CHECK(cuGraphLaunch(exec, stream)); wait(); }));

    CUdeviceptr memory;
    print("allocate_free", "us", timed(launches, [&] {
              CHECK(cuMemAlloc(&memory, 1 << 20));
              CHECK(cuMemFree(memory));
          }));
    print("allocate_free_async", "us", timed(launches, [&] {
              CHECK(cuMemAllocAsync(&memory, 1 << 20, stream));
              CHECK(cuMemFreeAsync(memory, stream));
          }));
    wait();
    for (size_t bytes : sizes) {
        copies(bytes, repeats, false);
        copies(bytes, repeats, true);
    }
}
