/* Every wrong use is an error with a text, and the session goes on. Argument: an endpoint. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vgpu.h>

static int failures;

static void expect(int line, int code, int wanted, const char *text)
{
    const char *message = vgpu_last_error_message();
    if (code != wanted || (code != VGPU_OK && strstr(message, text) == NULL)) {
        fprintf(stderr, "line %d: code %d, not %d; \"%s\" should have \"%s\"\n", line, code, wanted, message, text);
        failures++;
    }
    if (code != VGPU_OK && (vgpu_last_error_code() != code || vgpu_last_error_advice()[0] == 0)) {
        fprintf(stderr, "line %d: the last error is another, or without advice\n", line);
        failures++;
    }
}

#define GOOD(call) expect(__LINE__, call, VGPU_OK, "")
#define WRONG(call, text) expect(__LINE__, call, VGPU_ERROR_INVALID_ARGUMENT, text)
#define NO_HANDLE(call, text) expect(__LINE__, call, VGPU_ERROR_INVALID_HANDLE, text)
#define CHECK(condition)                                              \
    do {                                                              \
        if (!(condition)) {                                           \
            fprintf(stderr, "line %d: " #condition "\n", __LINE__);   \
            failures++;                                               \
        }                                                             \
    } while (0)

static const char PTX[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n"
    ".visible .entry set(.param .u64 to, .param .u32 value)\n"
    "{\n"
    "    .reg .b32 %v;\n"
    "    .reg .b64 %to;\n"
    "    ld.param.u64 %to, [to];\n"
    "    ld.param.u32 %v, [value];\n"
    "    st.global.u32 [%to], %v;\n"
    "    ret;\n"
    "}\n";

static vgpu_device *shared;

/* Copies in a lane of its own, beside the other threads. */
static void *copies(void *number)
{
    vgpu_device *lane = NULL;
    vgpu_buffer *buffer = NULL;
    unsigned char data[1000], back[1000];
    int round;
    memset(data, *(const int *)number, sizeof data);
    GOOD(vgpu_device_lane(shared, &lane));
    for (round = 0; round < 20; round++) {
        GOOD(vgpu_buffer_allocate(lane, sizeof data, &buffer));
        GOOD(vgpu_copy_to_device(lane, buffer, 0, data, sizeof data, NULL));
        GOOD(vgpu_copy_from_device(lane, back, buffer, 0, sizeof back, NULL));
        CHECK(memcmp(data, back, sizeof data) == 0);
        GOOD(vgpu_buffer_free(buffer));
    }
    /* Another thread's failures are not this one's. */
    CHECK(vgpu_last_error_code() == VGPU_OK);
    GOOD(vgpu_device_release(lane));
    NO_HANDLE(vgpu_synchronize(lane), "no device");
    return NULL;
}

static void sessions(const char *endpoint)
{
    vgpu_device *device = NULL;
    vgpu_options options;
    memset(&options, 0, sizeof options);
    WRONG(vgpu_open(endpoint, NULL, NULL), "the place for the device");
    WRONG(vgpu_open("nonsense", NULL, &device), "no scheme");
    WRONG(vgpu_open("", NULL, &device), "empty");
    WRONG(vgpu_open("local:\xff", NULL, &device), "not UTF-8");
    WRONG(vgpu_open(endpoint, &options, &device), "options of 0 bytes");
    options.size = sizeof options;
    options.connect_timeout_ms = 100;
    options.client_name = "misuse";
    expect(__LINE__, vgpu_open("local:/nowhere/vgpu.sock", &options, &device), VGPU_ERROR_UNREACHABLE, "/nowhere");
    CHECK(vgpu_last_error_retry() == VGPU_RETRY_NEW_SESSION);
    CHECK(vgpu_last_error_cuda() == 0 && vgpu_last_error_mediator() == 0);
    CHECK(device == NULL);
    NO_HANDLE(vgpu_synchronize(NULL), "the device is NULL");
    NO_HANDLE(vgpu_synchronize((vgpu_device *)(size_t)64), "no device");
    /* As free(NULL). */
    GOOD(vgpu_close(NULL));
    GOOD(vgpu_device_release(NULL));
    GOOD(vgpu_buffer_free(NULL));
    GOOD(vgpu_module_unload(NULL));
    GOOD(vgpu_stream_destroy(NULL));
    GOOD(vgpu_event_destroy(NULL));
    /* A success leaves what has failed before. */
    CHECK(vgpu_last_error_code() == VGPU_ERROR_INVALID_HANDLE);
}

static void device_information(vgpu_device *device)
{
    char name[256], cut[4];
    uint64_t free_bytes = 0, total = 0;
    int32_t value = 0;
    GOOD(vgpu_device_name(device, name, sizeof name));
    GOOD(vgpu_device_name(device, cut, sizeof cut));
    CHECK(strlen(name) > 3 && strlen(cut) == 3 && strncmp(name, cut, 3) == 0);
    WRONG(vgpu_device_name(device, NULL, 10), "NULL");
    WRONG(vgpu_device_name(device, name, 0), "no room");
    GOOD(vgpu_memory_info(device, &free_bytes, &total));
    CHECK(free_bytes > 0 && free_bytes <= total);
    WRONG(vgpu_memory_info(device, NULL, &total), "free bytes");
    GOOD(vgpu_device_attribute(device, VGPU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &value));
    CHECK(VGPU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75 && value > 0);
    WRONG(vgpu_device_attribute(device, 100000, &value), "no attribute 100000");
}

static void memory(vgpu_device *device)
{
    vgpu_buffer *buffer = NULL, *none = NULL, *other = NULL;
    unsigned char data[16], back[16];
    float floats[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint64_t address = 0;
    size_t size = 0;
    memset(data, 7, sizeof data);
    WRONG(vgpu_buffer_allocate(device, 16, NULL), "the place for the buffer");
    expect(__LINE__, vgpu_buffer_allocate(device, (size_t)1 << 60, &buffer), VGPU_ERROR_REFUSED, "E_QUOTA_MEM");
    CHECK(vgpu_last_error_mediator() == -3);
    GOOD(vgpu_buffer_allocate(device, 0, &none));
    GOOD(vgpu_copy_to_device(device, none, 0, NULL, 0, NULL));
    GOOD(vgpu_buffer_allocate(device, 16, &buffer));
    GOOD(vgpu_buffer_size(buffer, &size));
    CHECK(size == 16);
    GOOD(vgpu_buffer_address(buffer, &address));
    CHECK(address != 0);
    WRONG(vgpu_copy_to_device(device, buffer, 0, NULL, 16, NULL), "the source of the copy is NULL");
    WRONG(vgpu_copy_to_device(device, buffer, 1, data, 16, NULL), "at offset 1 of a buffer of 16 bytes");
    WRONG(vgpu_copy_to_device(device, buffer, 0, data, (size_t)-1, NULL), "of a buffer of 16 bytes");
    WRONG(vgpu_copy_to_device(device, buffer, (size_t)-1, data, 2, NULL), "of a buffer of 16 bytes");
    WRONG(vgpu_copy_from_device(device, NULL, buffer, 0, 16, NULL), "the destination of the copy is NULL");
    NO_HANDLE(vgpu_copy_to_device(device, NULL, 0, data, 16, NULL), "the buffer is NULL");
    NO_HANDLE(vgpu_copy_to_device(device, (vgpu_buffer *)(void *)device, 0, data, 16, NULL), "no buffer");
    NO_HANDLE(vgpu_copy_to_device(device, buffer, 0, data, 16, (vgpu_stream *)(void *)data), "no stream");
    WRONG(vgpu_fill(device, buffer, 0, 1, 3, 1, NULL), "elements of 3 bytes");
    WRONG(vgpu_fill(device, buffer, 0, 1, 4, 5, NULL), "5 elements of 4 bytes");
    WRONG(vgpu_fill(device, buffer, 1, 1, 4, 1, NULL), "offset 1 is no multiple of the 4 bytes");
    GOOD(vgpu_copy_to_device(device, buffer, 0, data, 16, NULL));
    GOOD(vgpu_fill(device, buffer, 2, 0x0201, 2, 2, NULL));
    GOOD(vgpu_buffer_allocate(device, 16, &other));
    GOOD(vgpu_copy_on_device(device, other, 8, buffer, 0, 8, NULL));
    GOOD(vgpu_copy_on_device(device, other, 0, buffer, 8, 8, NULL));
    GOOD(vgpu_copy_from_device(device, back, other, 0, 16, NULL));
    CHECK(memcmp(back, "\7\7\7\7\7\7\7\7\7\7\1\2\1\2\7\7", 16) == 0);
    GOOD(vgpu_buffer_free(buffer));
    NO_HANDLE(vgpu_buffer_free(buffer), "freed");
    NO_HANDLE(vgpu_copy_from_device(device, back, buffer, 0, 16, NULL), "freed");
    NO_HANDLE(vgpu_buffer_size(buffer, &size), "freed");
    GOOD(vgpu_vector_add(device, NULL, NULL, NULL, 0));
    WRONG(vgpu_vector_add(device, floats, floats, NULL, 4), "the sum is NULL");
    WRONG(vgpu_vector_add(device, floats, NULL, floats + 4, 4), "the vector b is NULL");
    WRONG(vgpu_vector_add(device, floats, floats + 4, floats + 3, 4), "overlaps");
    WRONG(vgpu_vector_add(device, (const float *)(const void *)((const char *)floats + 1), floats, floats + 4, 1), "aligned");
    WRONG(vgpu_vector_add(device, floats, floats, floats, (size_t)-1 / 2), "cannot have");
    GOOD(vgpu_vector_add(device, floats, floats, floats + 4, 4));
    CHECK(floats[4] == 2 && floats[7] == 8);
}

static void kernels(vgpu_device *device)
{
    vgpu_module *module = NULL;
    vgpu_function *set = NULL, *again = NULL;
    vgpu_buffer *buffer = NULL;
    vgpu_stream *stream = NULL;
    vgpu_event *start = NULL, *end = NULL;
    uint64_t address = 0, nanoseconds = 0, far_away = 0;
    uint32_t value = 5, back = 0;
    uint16_t narrow = 5;
    int32_t most = 0;
    int done = -1;
    vgpu_argument good[] = {VGPU_ARGUMENT(address), VGPU_ARGUMENT(value)};
    vgpu_argument thin[] = {VGPU_ARGUMENT(address), VGPU_ARGUMENT(narrow)};
    vgpu_argument hollow[] = {{NULL, sizeof address}, VGPU_ARGUMENT(value)};
    vgpu_argument astray[] = {VGPU_ARGUMENT(far_away), VGPU_ARGUMENT(value)};

    GOOD(vgpu_buffer_allocate(device, 4, &buffer));
    GOOD(vgpu_buffer_address(buffer, &address));
    WRONG(vgpu_module_load(device, NULL, 100, &module), "the image is NULL");
    WRONG(vgpu_module_load(device, PTX, 0, &module), "nothing in it");
    expect(__LINE__, vgpu_module_load(device, "not PTX", 7, &module), VGPU_ERROR_CUDA, "CUDA_ERROR_");
    CHECK(vgpu_last_error_cuda() > 0 && vgpu_last_error_mediator() == 0);
    GOOD(vgpu_module_load(device, PTX, sizeof PTX - 1, &module));
    WRONG(vgpu_module_function(module, NULL, &set), "the kernel's name is NULL");
    expect(__LINE__, vgpu_module_function(module, "get", &set), VGPU_ERROR_CUDA, "CUDA_ERROR_NOT_FOUND");
    CHECK(vgpu_last_error_cuda() == 500);
    GOOD(vgpu_module_function(module, "set", &set));
    GOOD(vgpu_module_function(module, "set", &again));
    CHECK(set == again);
    GOOD(vgpu_function_attribute(set, VGPU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, &most));
    CHECK(most > 0);
    WRONG(vgpu_function_attribute(set, 1000, &most), "no attribute 1000");
    WRONG(vgpu_function_attribute(set, 0, NULL), "the place for the attribute");
    NO_HANDLE(vgpu_function_attribute(NULL, 0, &most), "the function is NULL");
    WRONG(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, good, 1, NULL), "2 parameters, 1 arguments");
    WRONG(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, NULL, 2, NULL), "the list of arguments is NULL");
    WRONG(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, thin, 2, NULL), "argument 1 has 2 bytes");
    WRONG(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, hollow, 2, NULL), "the value of an argument is NULL");
    WRONG(vgpu_launch(device, set, 0, 1, 1, 1, 1, 1, 0, good, 2, NULL), "a grid of");
    WRONG(vgpu_launch(device, set, 1, 1, 1, 4096, 1, 1, 0, good, 2, NULL), "a block of 4096 threads");
    NO_HANDLE(vgpu_launch(device, NULL, 1, 1, 1, 1, 1, 1, 0, good, 2, NULL), "the function is NULL");
    WRONG(vgpu_launch_cooperative(device, set, 1, 1, 1, 1, 1, 1, 0, good, 1, NULL), "2 parameters, 1 arguments");
    GOOD(vgpu_launch_cooperative(device, set, 1, 1, 1, 1, 1, 1, 0, good, 2, NULL));
    GOOD(vgpu_synchronize(device));
    GOOD(vgpu_launch_cooperative(device, set, 1048576, 1, 1, 64, 1, 1, 0, good, 2, NULL));
    expect(__LINE__, vgpu_synchronize(device), VGPU_ERROR_CUDA, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE");

    WRONG(vgpu_stream_create_with(device, 2, 0, &stream), "flags 2 of a stream");
    WRONG(vgpu_stream_create_with(device, 0, 0, NULL), "the place for the stream");
    GOOD(vgpu_stream_create_with(device, VGPU_STREAM_BLOCKING, -1, &stream));
    GOOD(vgpu_event_create_without_timing(device, &start));
    GOOD(vgpu_event_record(device, start, stream));
    GOOD(vgpu_event_synchronize(start));
    expect(__LINE__, vgpu_event_elapsed(start, start, &nanoseconds), VGPU_ERROR_CUDA, "no time");
    CHECK(vgpu_last_error_cuda() == 400);
    GOOD(vgpu_event_destroy(start));
    GOOD(vgpu_stream_destroy(stream));
    GOOD(vgpu_stream_create(device, &stream));
    GOOD(vgpu_event_create(device, &start));
    GOOD(vgpu_event_create(device, &end));
    GOOD(vgpu_event_record(device, start, stream));
    GOOD(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, good, 2, stream));
    GOOD(vgpu_event_record(device, end, stream));
    GOOD(vgpu_stream_wait_event(device, NULL, end));
    GOOD(vgpu_copy_from_device(device, &back, buffer, 0, 4, NULL));
    CHECK(back == 5);
    GOOD(vgpu_event_synchronize(end));
    GOOD(vgpu_event_query(end, &done));
    CHECK(done == 1);
    GOOD(vgpu_event_elapsed(start, end, &nanoseconds));
    GOOD(vgpu_stream_synchronize(device, stream));
    GOOD(vgpu_stream_query(device, stream, &done));
    CHECK(done == 1);
    NO_HANDLE(vgpu_stream_query(device, NULL, &done), "the stream is NULL");
    NO_HANDLE(vgpu_event_record(device, NULL, stream), "the event is NULL");
    GOOD(vgpu_stream_destroy(stream));
    NO_HANDLE(vgpu_stream_synchronize(device, stream), "no stream");
    GOOD(vgpu_event_destroy(start));
    NO_HANDLE(vgpu_event_elapsed(start, end, &nanoseconds), "no event");
    GOOD(vgpu_module_unload(module));
    NO_HANDLE(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, good, 2, NULL), "no function");
    NO_HANDLE(vgpu_module_function(module, "set", &set), "no module");

    /* A kernel that goes astray ends what the session has of the device, and nothing else. */
    GOOD(vgpu_module_load(device, PTX, sizeof PTX - 1, &module));
    GOOD(vgpu_module_function(module, "set", &set));
    GOOD(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, astray, 2, NULL));
    expect(__LINE__, vgpu_synchronize(device), VGPU_ERROR_CUDA, "CUDA_ERROR_ILLEGAL_ADDRESS");
    CHECK(vgpu_last_error_cuda() == 700);
}

static void devices(const char *endpoint)
{
    vgpu_device *device = NULL;
    vgpu_options options;
    static vgpu_device_info infos[2];
    char name[256];
    uint64_t free_bytes = 0, total = 0;
    int32_t value = 0;
    size_t listed = 0;
    uint32_t count = 0;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.device = 7;
    expect(__LINE__, vgpu_open(endpoint, &options, &device), VGPU_ERROR_CUDA, "CUDA_ERROR_INVALID_DEVICE");
    CHECK(vgpu_last_error_cuda() == 101 && device == NULL);
    options.device = 0;
    GOOD(vgpu_open(endpoint, &options, &device));
    GOOD(vgpu_device_count(device, &count));
    CHECK(count == 1);
    WRONG(vgpu_device_count(device, NULL), "number of devices");
    WRONG(vgpu_list_devices(endpoint, NULL, infos, 2, NULL), "the place for the number of devices");
    WRONG(vgpu_list_devices(endpoint, NULL, NULL, 2, &listed), "the place for devices is NULL");
    WRONG(vgpu_list_devices("nonsense", NULL, infos, 2, &listed), "no scheme");
    GOOD(vgpu_list_devices(endpoint, NULL, NULL, 0, &listed));
    CHECK(listed == 1);
    options.device = 7;
    GOOD(vgpu_list_devices(endpoint, &options, infos, 2, &listed));
    CHECK(listed == 1 && infos[1].total_memory == 0 && infos[1].name[0] == 0);
    GOOD(vgpu_device_name(device, name, sizeof name));
    GOOD(vgpu_memory_info(device, &free_bytes, &total));
    CHECK(strcmp(infos[0].name, name) == 0 && infos[0].total_memory == total && infos[0].driver_version > 0);
    GOOD(vgpu_device_attribute(device, VGPU_DEVICE_ATTRIBUTE_WARP_SIZE, &value));
    CHECK(value == 32 && infos[0].attributes[VGPU_DEVICE_ATTRIBUTE_WARP_SIZE] == 32);
    CHECK(infos[0].attributes[0] == INT32_MIN);
    GOOD(vgpu_close(device));
}

/* Rectangles of bytes that are their own places in rows of 20. */
static void rows(vgpu_device *device)
{
    vgpu_pinned *pinned = NULL;
    vgpu_buffer *buffer = NULL;
    unsigned char data[200], back[200], *bytes;
    void *start = NULL;
    int i, x, y;
    GOOD(vgpu_buffer_allocate(device, 200, &buffer));
    GOOD(vgpu_pinned_allocate(device, 200, &pinned));
    GOOD(vgpu_pinned_data(pinned, &start));
    bytes = (unsigned char *)start;
    for (i = 0; i < 200; i++) {
        data[i] = (unsigned char)i;
        bytes[i] = (unsigned char)i;
    }
    /* 3 rows of 5 bytes from row 2, column 4, to rows of 10 bytes from row 1, column 3. */
    GOOD(vgpu_fill(device, buffer, 0, 0xff, 1, 200, NULL));
    GOOD(vgpu_copy_rows_pinned_to_device(device, buffer, 13, 10, pinned, 44, 20, 5, 3, NULL));
    memset(back, 0xee, sizeof back);
    GOOD(vgpu_copy_rows_from_device(device, back, 20, buffer, 10, 10, 10, 4, NULL));
    for (y = 0; y < 4; y++)
        for (x = 0; x < 20; x++)
            CHECK(y * 20 + x >= 70 || x >= 10 || back[y * 20 + x] == (y < 3 && x >= 3 && x < 8 ? data[44 + 20 * y + x - 3] : 0xff));
    CHECK(back[10] == 0xee && back[70] == 0xee);
    /* The same through ordinary memory, and back into page-locked memory of which nothing else changes. */
    GOOD(vgpu_fill(device, buffer, 0, 0xff, 1, 200, NULL));
    GOOD(vgpu_copy_rows_to_device(device, buffer, 13, 10, data + 44, 20, 5, 3, NULL));
    GOOD(vgpu_copy_rows_device_to_pinned(device, pinned, 0, 7, buffer, 13, 10, 5, 3, NULL));
    GOOD(vgpu_pinned_wait(pinned));
    for (i = 0; i < 200; i++) {
        y = i / 7;
        x = i - 7 * y;
        CHECK(bytes[i] == (y < 3 && x < 5 ? data[44 + 20 * y + x] : data[i]));
    }
    GOOD(vgpu_copy_rows_to_device(device, buffer, 200, 0, NULL, 0, 0, 9, NULL));
    GOOD(vgpu_copy_rows_device_to_pinned(device, pinned, 200, 0, buffer, 200, 0, 9, 0, NULL));
    WRONG(vgpu_copy_rows_to_device(device, buffer, 0, 10, NULL, 10, 10, 2, NULL), "the source of the copy is NULL");
    WRONG(vgpu_copy_rows_to_device(device, buffer, 0, 4, data, 10, 5, 2, NULL), "2 rows of 5 bytes every 4 bytes");
    WRONG(vgpu_copy_rows_to_device(device, buffer, 0, 10, data, 4, 5, 1, NULL), "1 rows of 5 bytes every 4 bytes");
    WRONG(vgpu_copy_rows_to_device(device, buffer, 191, 10, data, 10, 5, 2, NULL), "of a buffer of 200 bytes");
    WRONG(vgpu_copy_rows_from_device(device, back, 10, buffer, (size_t)-3, 10, 5, 1, NULL), "at offset");
    WRONG(vgpu_copy_rows_from_device(device, back, (size_t)-1, buffer, 0, 10, 5, 3, NULL), "3 rows of 5 bytes every");
    WRONG(vgpu_copy_rows_from_device(device, back, 10, buffer, 0, 10, 5, (size_t)-1, NULL), "every 10 bytes");
    WRONG(vgpu_copy_rows_pinned_to_device(device, buffer, 0, 10, pinned, 186, 10, 5, 2, NULL), "200");
    WRONG(vgpu_copy_rows_device_to_pinned(device, pinned, (size_t)-1, 10, buffer, 0, 10, 5, 2, NULL), "at offset");
    NO_HANDLE(vgpu_copy_rows_pinned_to_device(device, buffer, 0, 10, NULL, 0, 10, 5, 2, NULL), "the page-locked memory is NULL");
    NO_HANDLE(vgpu_copy_rows_device_to_pinned(device, pinned, 0, 10, NULL, 0, 10, 5, 2, NULL), "the buffer is NULL");
    GOOD(vgpu_synchronize(device));
    GOOD(vgpu_pinned_free(pinned));
    GOOD(vgpu_buffer_free(buffer));
}

static void page_locked(vgpu_device *device)
{
    vgpu_pinned *pinned = NULL, *none = NULL;
    vgpu_buffer *buffer = NULL;
    vgpu_module *module = NULL;
    vgpu_function *set = NULL;
    void *data = NULL, *nothing = NULL;
    unsigned char *bytes;
    uint64_t address = 0;
    uint32_t value = 0x01020304;
    int locked = -1, i;
    vgpu_argument arguments[] = {VGPU_ARGUMENT(address), VGPU_ARGUMENT(value)};
    WRONG(vgpu_pinned_allocate(device, 16, NULL), "the place for the page-locked memory");
    GOOD(vgpu_pinned_allocate(device, 0, &none));
    GOOD(vgpu_pinned_data(none, &nothing));
    GOOD(vgpu_pinned_address(none, &address));
    CHECK(address == 0);
    GOOD(vgpu_pinned_allocate(device, 1000, &pinned));
    GOOD(vgpu_pinned_is_page_locked(pinned, &locked));
    CHECK(locked == 1);
    GOOD(vgpu_pinned_data(pinned, &data));
    bytes = (unsigned char *)data;
    for (i = 0; i < 1000; i++)
        bytes[i] = (unsigned char)i;
    GOOD(vgpu_buffer_allocate(device, 100, &buffer));
    GOOD(vgpu_copy_pinned_to_device(device, buffer, 1, pinned, 10, 99, NULL));
    GOOD(vgpu_copy_device_to_pinned(device, pinned, 901, buffer, 1, 99, NULL));
    GOOD(vgpu_pinned_wait(pinned));
    CHECK(bytes[900] == (unsigned char)900 && memcmp(bytes + 901, bytes + 10, 99) == 0);
    WRONG(vgpu_copy_pinned_to_device(device, buffer, 0, pinned, 990, 11, NULL), "1000");
    WRONG(vgpu_copy_pinned_to_device(device, buffer, 2, pinned, 0, 99, NULL), "of a buffer of 100 bytes");
    WRONG(vgpu_copy_device_to_pinned(device, pinned, (size_t)-1, buffer, 0, 2, NULL), "page-locked memory");
    NO_HANDLE(vgpu_copy_device_to_pinned(device, NULL, 0, buffer, 0, 2, NULL), "the page-locked memory is NULL");
    NO_HANDLE(vgpu_pinned_data((vgpu_pinned *)(void *)buffer, &data), "no page-locked memory");
    GOOD(vgpu_pinned_address(pinned, &address));
    CHECK(address != 0);
    address += 500;
    GOOD(vgpu_module_load(device, PTX, sizeof PTX - 1, &module));
    GOOD(vgpu_module_function(module, "set", &set));
    GOOD(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, arguments, 2, NULL));
    GOOD(vgpu_synchronize(device));
    CHECK(memcmp(bytes + 500, "\4\3\2\1", 4) == 0 && bytes[504] == (unsigned char)504);
    GOOD(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, arguments, 2, NULL));
    GOOD(vgpu_pinned_free(pinned));
    NO_HANDLE(vgpu_pinned_free(pinned), "freed");
    NO_HANDLE(vgpu_pinned_data(pinned, &data), "freed");
    GOOD(vgpu_pinned_free(NULL));
    GOOD(vgpu_pinned_free(none));
    GOOD(vgpu_buffer_free(buffer));
    GOOD(vgpu_module_unload(module));
}

static void compilation(vgpu_device *device)
{
    vgpu_compile_options how;
    vgpu_module *module = NULL;
    static const char *const options[] = {"-DN=1", NULL};
    int code;
    memset(&how, 0, sizeof how);
    WRONG(vgpu_module_compile(device, NULL, NULL, &module), "the source is NULL");
    WRONG(vgpu_module_compile(device, "", NULL, &module), "nothing in it");
    WRONG(vgpu_module_compile(device, "x", &how, &module), "sizeof(vgpu_compile_options)");
    how.size = sizeof how;
    how.at = 9;
    WRONG(vgpu_module_compile(device, "x", &how, &module), "vgpu_compile_at");
    how.at = VGPU_COMPILE_AT_ANY;
    how.option_count = 1;
    WRONG(vgpu_module_compile(device, "x", &how, &module), "option is NULL");
    how.options = options;
    how.option_count = 2;
    WRONG(vgpu_module_compile(device, "x", &how, &module), "option is NULL");
    how.option_count = 1;
    /* Where somebody compiles. */
    code = vgpu_module_compile(device, "this is no source", &how, &module);
    if (code == VGPU_ERROR_UNSUPPORTED) {
        CHECK(strstr(vgpu_last_error_advice(), "NVRTC") != NULL);
        CHECK(vgpu_last_error_log()[0] == 0);
    } else {
        expect(__LINE__, code, VGPU_ERROR_INVALID_ARGUMENT, "does not compile");
        CHECK(strstr(vgpu_last_error_log(), "source.cu") != NULL);
        GOOD(vgpu_module_compile(device, "extern \"C\" __global__ void k(int *x) { *x = N; }", &how, &module));
        GOOD(vgpu_module_unload(module));
    }
}

static void threads(const char *endpoint)
{
    pthread_t thread[3];
    int numbers[3] = {1, 2, 3};
    int i;
    vgpu_buffer *buffer = NULL, *of_another = NULL;
    vgpu_device *other = NULL;
    char byte = 0;
    GOOD(vgpu_open(endpoint, NULL, &shared));
    for (i = 0; i < 3; i++)
        CHECK(pthread_create(&thread[i], NULL, copies, &numbers[i]) == 0);
    for (i = 0; i < 3; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    GOOD(vgpu_buffer_allocate(shared, 1, &buffer));
    GOOD(vgpu_open(endpoint, NULL, &other));
    GOOD(vgpu_buffer_allocate(other, 1, &of_another));
    WRONG(vgpu_copy_to_device(shared, of_another, 0, &byte, 1, NULL), "of another session");
    GOOD(vgpu_close(shared));
    NO_HANDLE(vgpu_close(shared), "no device");
    NO_HANDLE(vgpu_synchronize(shared), "whose session was closed");
    NO_HANDLE(vgpu_buffer_free(buffer), "whose session was closed");
    GOOD(vgpu_copy_to_device(other, of_another, 0, &byte, 1, NULL));
    GOOD(vgpu_close(other));
}

/* A failure that nobody has waited for is that of the end, and names the request. */
static void told_at_the_end(const char *endpoint)
{
    vgpu_device *device = NULL;
    vgpu_module *module = NULL;
    vgpu_function *set = NULL;
    uint64_t nowhere = 16;
    uint32_t value = 1, id = 0;
    size_t sent = 0;
    vgpu_failed_request failed[2];
    const vgpu_argument arguments[] = {VGPU_ARGUMENT(nowhere), VGPU_ARGUMENT(value)};
    memset(failed, 0, sizeof failed);
    GOOD(vgpu_open(endpoint, NULL, &device));
    GOOD(vgpu_last_requests(device, &id, 1, &sent));
    CHECK(sent == 0);
    GOOD(vgpu_module_load(device, PTX, sizeof PTX - 1, &module));
    GOOD(vgpu_module_function(module, "set", &set));
    GOOD(vgpu_launch(device, set, 1, 1, 1, 1, 1, 1, 0, arguments, 2, NULL));
    GOOD(vgpu_last_requests(device, &id, 1, &sent));
    CHECK(sent == 1);
    WRONG(vgpu_last_requests(device, NULL, 1, &sent), "NULL");
    WRONG(vgpu_last_requests(device, &id, 1, NULL), "number of requests");
    expect(__LINE__, vgpu_close(device), VGPU_ERROR_CUDA, "failed");
    CHECK(vgpu_last_error_requests(NULL, 0) == 1);
    CHECK(vgpu_last_error_requests(failed, 2) == 1);
    CHECK(failed[0].id == id && failed[0].operation == 29 && failed[0].mediator == 0);
    CHECK(failed[0].cuda == vgpu_last_error_cuda() && failed[0].cuda >= 700 && failed[1].id == 0);
    CHECK(vgpu_last_error_more_requests() == 0);
    NO_HANDLE(vgpu_synchronize(device), "whose session was closed");
    CHECK(vgpu_last_error_requests(failed, 2) == 0);
}

int main(int argc, char **argv)
{
    vgpu_device *device = NULL;
    if (argc != 2)
        return 2;
    CHECK(strcmp(vgpu_last_error_message(), "") == 0);
    CHECK(strchr(vgpu_version(), '.') != NULL);
    sessions(argv[1]);
    GOOD(vgpu_open(argv[1], NULL, &device));
    device_information(device);
    memory(device);
    page_locked(device);
    rows(device);
    compilation(device);
    kernels(device);
    vgpu_close(device);
    threads(argv[1]);
    told_at_the_end(argv[1]);
    devices(argv[1]);
    if (failures == 0)
        printf("every misuse was told\n");
    return failures != 0;
}
