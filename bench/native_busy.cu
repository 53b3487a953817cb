// A plain process whose kernel does not end, as seen from another one: bench/gpu_neighbour.sh.
//   nvcc -O2 -o native_busy bench/native_busy.cu -lcuda && ./native_busy bench/busy.ptx
// Prints a line when the kernel runs, and waits for its end: 2^32 turns of a loop, half a minute or so.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include <cuda.h>

#define CHECK(call)                                          \
    do {                                                     \
        CUresult result = call;                              \
        if (result != CUDA_SUCCESS) {                        \
            fprintf(stderr, "%s: error %d\n", #call, result); \
            exit(1);                                         \
        }                                                    \
    } while (0)

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: native_busy FILE.ptx\n");
        return 2;
    }
    std::ifstream file(argv[1]);
    std::string ptx((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    CUdevice gpu;
    CUcontext context;
    CUmodule module;
    CUfunction busy;
    CUdeviceptr out;
    unsigned times = 0;
    void *parameters[] = {&out, &times};
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&gpu, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, gpu));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, ptx.c_str()));
    CHECK(cuModuleGetFunction(&busy, module, "busy"));
    CHECK(cuMemAlloc(&out, 4));
    CHECK(cuLaunchKernel(busy, 1, 1, 1, 1, 1, 1, 0, NULL, parameters, NULL));
    printf("runs\n");
    fflush(stdout);
    CHECK(cuCtxSynchronize());
    return 0;
}
