/* Lists the devices that this guest may use, and opens the one with the most memory.
 *
 *     cc -std=c99 devices.c -lvgpu -o devices
 *     ./devices local:/run/vgpu/vgpu.sock
 *
 * Without an argument, VGPU_ENDPOINT is used, or xen:. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vgpu.h>

#define ROOM 16

static void check(int code)
{
    if (code != VGPU_OK) {
        fprintf(stderr, "error: %s\n help: %s\n", vgpu_last_error_message(), vgpu_last_error_advice());
        exit(1);
    }
}

int main(int argc, char **argv)
{
    static vgpu_device_info devices[ROOM];
    const char *endpoints = argc > 1 ? argv[1] : NULL;
    vgpu_options options;
    vgpu_device *device;
    size_t count, i, largest = 0;
    int32_t multiprocessors;

    check(vgpu_list_devices(endpoints, NULL, devices, ROOM, &count));
    printf("%lu devices\n", (unsigned long)count);
    for (i = 0; i < count && i < ROOM; i++) {
        printf("%lu: %s, %lu MiB, compute capability %d.%d\n", (unsigned long)i, devices[i].name,
               (unsigned long)(devices[i].total_memory >> 20),
               (int)devices[i].attributes[VGPU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR],
               (int)devices[i].attributes[VGPU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR]);
        if (devices[i].total_memory > devices[largest].total_memory)
            largest = i;
    }
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.device = (uint32_t)largest;
    check(vgpu_open(endpoints, &options, &device));
    check(vgpu_device_attribute(device, VGPU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &multiprocessors));
    if (multiprocessors != devices[largest].attributes[VGPU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT]) {
        fprintf(stderr, "device %lu is another one than was listed\n", (unsigned long)largest);
        return 1;
    }
    check(vgpu_close(device));
    printf("opened device %lu, with %d multiprocessors\n", (unsigned long)largest, (int)multiprocessors);
    return 0;
}
