/* A kernel from CUDA C++ works on page-locked memory of this program, or on a copy of it where it cannot reach that.
 *
 *     cc -std=c99 pinned.c -lvgpu -o pinned
 *     ./pinned local:/run/vgpu/vgpu.sock [number of the device]
 *
 * Without an argument, VGPU_ENDPOINT is used, or xen:. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vgpu.h>

#define N 100000

static const char SOURCE[] =
    "#include \"factor.h\"\n"
    "extern \"C\" __global__ void scale(float *x, unsigned n)\n"
    "{\n"
    "    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;\n"
    "    if (i < n)\n"
    "        x[i] *= FACTOR + PLUS;\n"
    "}\n";

/* The same, for where nobody has NVIDIA's compiler. */
static const char PTX[] =
    ".version 6.0\n"
    ".target sm_50\n"
    ".address_size 64\n"
    ".visible .entry scale(.param .u64 x, .param .u32 n)\n"
    "{\n"
    "    .reg .pred %p;\n"
    "    .reg .b32 %i, %t, %b, %n;\n"
    "    .reg .f32 %x;\n"
    "    .reg .b64 %px;\n"
    "    ld.param.u64 %px, [x];\n"
    "    ld.param.u32 %n, [n];\n"
    "    mov.u32 %b, %ctaid.x;\n"
    "    mov.u32 %t, %ntid.x;\n"
    "    mov.u32 %i, %tid.x;\n"
    "    mad.lo.u32 %i, %b, %t, %i;\n"
    "    setp.ge.u32 %p, %i, %n;\n"
    "    @%p bra done;\n"
    "    cvta.to.global.u64 %px, %px;\n"
    "    mad.wide.u32 %px, %i, 4, %px;\n"
    "    ld.global.f32 %x, [%px];\n"
    "    mul.f32 %x, %x, 0f40800000;\n"
    "    st.global.f32 [%px], %x;\n"
    "done:\n"
    "    ret;\n"
    "}\n";

static void check(int code)
{
    if (code != VGPU_OK) {
        fprintf(stderr, "error: %s\n help: %s\n%s", vgpu_last_error_message(), vgpu_last_error_advice(), vgpu_last_error_log());
        exit(1);
    }
}

static vgpu_module *compile(vgpu_device *device)
{
    static const char *const options[] = {"-DPLUS=1"};
    static const char *const names[] = {"factor.h"};
    static const char *const texts[] = {"#define FACTOR 3\n"};
    vgpu_compile_options how;
    vgpu_module *module = NULL;
    int code;
    memset(&how, 0, sizeof how);
    how.size = sizeof how;
    how.options = options;
    how.option_count = 1;
    how.header_names = names;
    how.header_texts = texts;
    how.header_count = 1;
    code = vgpu_module_compile(device, SOURCE, &how, &module);
    if (code == VGPU_ERROR_UNSUPPORTED)
        code = vgpu_module_load(device, PTX, sizeof PTX - 1, &module);
    check(code);
    return module;
}

int main(int argc, char **argv)
{
    vgpu_options options;
    vgpu_device *device;
    vgpu_function *scale;
    vgpu_pinned *pinned;
    vgpu_buffer *buffer = NULL;
    void *data;
    float *x;
    uint64_t address;
    uint32_t n = N, devices;
    int i;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.device = argc > 2 ? (uint32_t)atoi(argv[2]) : 0;
    check(vgpu_open(argc > 1 ? argv[1] : NULL, &options, &device));
    check(vgpu_device_count(device, &devices));
    check(vgpu_module_function(compile(device), "scale", &scale));

    check(vgpu_pinned_allocate(device, N * sizeof(float), &pinned));
    check(vgpu_pinned_data(pinned, &data));
    x = (float *)data;
    for (i = 0; i < N; i++)
        x[i] = (float)i;
    check(vgpu_pinned_address(pinned, &address));
    if (address == 0) {
        check(vgpu_buffer_allocate(device, N * sizeof(float), &buffer));
        check(vgpu_buffer_address(buffer, &address));
        check(vgpu_copy_pinned_to_device(device, buffer, 0, pinned, 0, N * sizeof(float), NULL));
    }
    {
        vgpu_argument arguments[] = {VGPU_ARGUMENT(address), VGPU_ARGUMENT(n)};
        check(vgpu_launch(device, scale, (N + 255) / 256, 1, 1, 256, 1, 1, 0, arguments, 2, NULL));
    }
    if (buffer != NULL)
        check(vgpu_copy_device_to_pinned(device, pinned, 0, buffer, 0, N * sizeof(float), NULL));
    /* For the kernel, and for the copy. */
    check(vgpu_synchronize(device));
    for (i = 0; i < N; i++) {
        if (x[i] != 4.0f * (float)i) {
            fprintf(stderr, "element %d is %f\n", i, x[i]);
            return 1;
        }
    }
    check(vgpu_pinned_free(pinned));
    check(vgpu_close(device));
    printf("%d elements scaled %s, on device %u of %u\n", N, buffer == NULL ? "in place" : "in a copy",
           (unsigned)options.device, (unsigned)devices);
    return 0;
}
