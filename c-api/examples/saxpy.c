/* Two vectors are added by the library, and a kernel of one's own computes y = 3 x + y.
 *
 *     cc -std=c99 saxpy.c -lvgpu -o saxpy
 *     ./saxpy local:/run/vgpu/vgpu.sock
 *
 * Without an argument, VGPU_ENDPOINT is used, or xen:. */

#include <stdio.h>
#include <stdlib.h>
#include <vgpu.h>

#define N 100000

static const char PTX[] =
    ".version 6.0\n"
    ".target sm_50\n"
    ".address_size 64\n"
    ".visible .entry saxpy(.param .f32 a, .param .u64 x, .param .u64 y, .param .u32 n)\n"
    "{\n"
    "    .reg .pred %p;\n"
    "    .reg .b32 %i, %t, %b, %n;\n"
    "    .reg .f32 %a, %x, %y;\n"
    "    .reg .b64 %px, %py;\n"
    "    ld.param.f32 %a, [a];\n"
    "    ld.param.u64 %px, [x];\n"
    "    ld.param.u64 %py, [y];\n"
    "    ld.param.u32 %n, [n];\n"
    "    mov.u32 %b, %ctaid.x;\n"
    "    mov.u32 %t, %ntid.x;\n"
    "    mov.u32 %i, %tid.x;\n"
    "    mad.lo.u32 %i, %b, %t, %i;\n"
    "    setp.ge.u32 %p, %i, %n;\n"
    "    @%p bra done;\n"
    "    cvta.to.global.u64 %px, %px;\n"
    "    cvta.to.global.u64 %py, %py;\n"
    "    mad.wide.u32 %px, %i, 4, %px;\n"
    "    mad.wide.u32 %py, %i, 4, %py;\n"
    "    ld.global.f32 %x, [%px];\n"
    "    ld.global.f32 %y, [%py];\n"
    "    fma.rn.f32 %y, %a, %x, %y;\n"
    "    st.global.f32 [%py], %y;\n"
    "done:\n"
    "    ret;\n"
    "}\n";

static void check(int code)
{
    if (code != VGPU_OK) {
        fprintf(stderr, "error: %s\n help: %s\n", vgpu_last_error_message(), vgpu_last_error_advice());
        exit(1);
    }
}

int main(int argc, char **argv)
{
    static float x[N], y[N], sum[N];
    vgpu_device *device;
    vgpu_module *module;
    vgpu_function *saxpy;
    vgpu_buffer *on_device_x, *on_device_y;
    uint64_t address_x, address_y;
    float a = 3.0f;
    uint32_t n = N;
    char name[256];
    int i;

    for (i = 0; i < N; i++) {
        x[i] = (float)i;
        y[i] = 2.0f;
    }
    check(vgpu_open(argc > 1 ? argv[1] : NULL, NULL, &device));
    check(vgpu_device_name(device, name, sizeof name));

    check(vgpu_vector_add(device, x, y, sum, N));
    for (i = 0; i < N; i++) {
        if (sum[i] != x[i] + y[i]) {
            fprintf(stderr, "element %d of the sum is %f\n", i, sum[i]);
            return 1;
        }
    }

    check(vgpu_buffer_allocate(device, sizeof x, &on_device_x));
    check(vgpu_buffer_allocate(device, sizeof y, &on_device_y));
    check(vgpu_copy_to_device(device, on_device_x, 0, x, sizeof x, NULL));
    check(vgpu_copy_to_device(device, on_device_y, 0, y, sizeof y, NULL));
    check(vgpu_buffer_address(on_device_x, &address_x));
    check(vgpu_buffer_address(on_device_y, &address_y));
    check(vgpu_module_load(device, PTX, sizeof PTX - 1, &module));
    check(vgpu_module_function(module, "saxpy", &saxpy));
    {
        vgpu_argument arguments[] = {
            VGPU_ARGUMENT(a),
            VGPU_ARGUMENT(address_x),
            VGPU_ARGUMENT(address_y),
            VGPU_ARGUMENT(n),
        };
        check(vgpu_launch(device, saxpy, (N + 255) / 256, 1, 1, 256, 1, 1, 0, arguments, 4, NULL));
    }
    check(vgpu_copy_from_device(device, y, on_device_y, 0, sizeof y, NULL));
    for (i = 0; i < N; i++) {
        if (y[i] != 3.0f * x[i] + 2.0f) {
            fprintf(stderr, "element %d of y is %f\n", i, y[i]);
            return 1;
        }
    }
    /* Frees everything of the session. */
    check(vgpu_close(device));
    printf("%d elements added and computed on %s\n", N, name);
    return 0;
}
