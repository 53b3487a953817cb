/* vgpu: GPU work sent from a guest of Xen, or from anywhere, to a mediator that has the GPU.
 *
 * Link with -lvgpu. A session:
 *
 *     vgpu_device *device;
 *     if (vgpu_open(NULL, NULL, &device) != VGPU_OK) {
 *         fprintf(stderr, "%s\n%s\n", vgpu_last_error_message(), vgpu_last_error_advice());
 *         return 1;
 *     }
 *     vgpu_vector_add(device, a, b, sum, n);
 *     vgpu_close(device);
 *
 * Results. Every call that can fail returns VGPU_OK or a vgpu_error, and its thread can ask for details
 * until its next failure. A result is written only by a call that succeeds.
 *
 * Handles. A handle may be used in any thread, in several at once. One that was freed is reported
 * (VGPU_ERROR_INVALID_HANDLE), as is one of another kind or of a session that was closed: using it is never a crash.
 * Calls with one vgpu_device run one at a time, in the order of their beginning; a thread that must not wait for
 * others takes a handle of its own by vgpu_device_lane. No handle survives fork().
 *
 * Pointers. A pointer to data points to as many bytes as the call says, or is NULL where there are none, which is
 * reported (VGPU_ERROR_INVALID_ARGUMENT) where there must be some. During the call no other thread writes what the call
 * reads, nor uses what it writes. A text ends with a NUL and is UTF-8. Nothing is kept of them after the call.
 *
 * The exception is page-locked memory (vgpu_pinned_allocate), which the program has until it frees it.
 *
 * Output that kernels print goes to the standard output of the program.
 *
 * This file is generated. SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef VGPU_H
#define VGPU_H

#include <stddef.h>
#include <stdint.h>

/* The argument of a kernel that is the value of `variable`. */
#define VGPU_ARGUMENT(variable) { &(variable), sizeof(variable) }

// Returned by a call that succeeds.
#define VGPU_OK 0

// Flag of a stream: it and the default stream wait for each other, as CUDA's do without `CU_STREAM_NON_BLOCKING`.
#define VGPU_STREAM_BLOCKING 1

// Whether the same call can succeed without anything being changed first.
typedef enum {
    // No.
    VGPU_RETRY_NO = 0,
    // Yes, in the same session.
    VGPU_RETRY_SAME_SESSION = 1,
    // Perhaps, in a new session: this one is over.
    VGPU_RETRY_NEW_SESSION = 2,
} vgpu_retry;

// Returned by a call that fails.
typedef enum {
    // An argument is wrong: NULL where there must be something, a size that does not fit, a text that is not UTF-8.
    VGPU_ERROR_INVALID_ARGUMENT = 1,
    // A handle is NULL, was freed, is of another kind, or its session was closed.
    VGPU_ERROR_INVALID_HANDLE = 2,
    // No mediator can be reached.
    VGPU_ERROR_UNREACHABLE = 3,
    // The connection broke, or the session is over since an earlier error.
    VGPU_ERROR_CONNECTION = 4,
    // Nothing moved for as long as the options allow.
    VGPU_ERROR_TIMEOUT = 5,
    // The mediator refused: `vgpu_last_error_mediator` has its code.
    VGPU_ERROR_REFUSED = 6,
    // The driver reported an error: `vgpu_last_error_cuda` has its `CUresult`.
    VGPU_ERROR_CUDA = 7,
    // This session does not offer what was asked for.
    VGPU_ERROR_UNSUPPORTED = 8,
    // The mediator broke the protocol.
    VGPU_ERROR_PROTOCOL = 9,
    // A fault in this library.
    VGPU_ERROR_INTERNAL = 10,
} vgpu_error;

// Where CUDA C++ is compiled.
typedef enum {
    // Here where NVIDIA's run-time compiler NVRTC is installed, by the mediator otherwise.
    VGPU_COMPILE_AT_ANY = 0,
    // Here. `#include` also finds files of this machine.
    VGPU_COMPILE_AT_HERE = 1,
    // By the mediator, of whose machine no file can be named.
    VGPU_COMPILE_AT_MEDIATOR = 2,
} vgpu_compile_at;

// Memory on a device.
typedef struct vgpu_buffer vgpu_buffer;

// A session with a mediator, and its device.
typedef struct vgpu_device vgpu_device;

// A point in a stream, which others can wait for.
typedef struct vgpu_event vgpu_event;

// A kernel of a module.
typedef struct vgpu_function vgpu_function;

// Code on a device.
typedef struct vgpu_module vgpu_module;

// Page-locked memory of this program.
typedef struct vgpu_pinned vgpu_pinned;

// An order of work of its own, beside that of other streams.
typedef struct vgpu_stream vgpu_stream;

// A request that failed when nobody waited for it.
typedef struct {
    // Its id: one of those that `vgpu_last_requests` has given after the call that sent it.
    uint32_t id;
    // The number of the operation (docs/protocol.md): 29 is a launch.
    uint32_t operation;
    // The `CUresult`; 0 where it was not the driver's failure.
    int32_t cuda;
    // The mediator's code, which is negative; 0 where it was not the mediator's.
    int32_t mediator;
} vgpu_failed_request;

// Settings of a session. All bytes 0 but for `size` are the defaults.
typedef struct {
    // `sizeof(vgpu_options)`.
    size_t size;
    // Milliseconds that one endpoint may take until its session is open; 0: 10,000.
    uint32_t connect_timeout_ms;
    // Milliseconds for which nothing may move before a call gives up; 0: 30,000.
    uint32_t stall_timeout_ms;
    // Name of this program in the mediator's log; NULL: the name of the executable, and its process id.
    const char *client_name;
    // The file with the secret that `tcp:` needs; NULL: the one that the environment's `VGPU_SECRET_FILE` names.
    const char *secret_file;
    // The device, of those that this guest may use, from 0 on: `vgpu_device_count` is how many they are.
    uint32_t device;
} vgpu_options;

// How CUDA C++ is compiled. All bytes 0 but for `size` are the defaults.
typedef struct {
    // `sizeof(vgpu_compile_options)`.
    size_t size;
    // Name of the source in the compiler's messages; NULL: "source.cu".
    const char *name;
    // The compute capability to compile for, as 90 for 9.0; 0: the device's.
    uint32_t capability;
    // Where it is compiled, a `vgpu_compile_at`.
    uint32_t at;
    // Options of NVRTC, each one word, as "--use_fast_math", "-DN=256". The mediator takes those alone that name no file.
    const char *const *options;
    // How many there are.
    size_t option_count;
    // Names of headers for `#include`.
    const char *const *header_names;
    // Their texts.
    const char *const *header_texts;
    // How many there are.
    size_t header_count;
} vgpu_compile_options;

// One argument of a kernel: where its value is, and the bytes of it. Of memory on the device, the value is its address.
typedef struct {
    // The value.
    const void *value;
    // Its size.
    size_t bytes;
} vgpu_argument;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The code of this thread's last failure; `VGPU_OK` where none of its calls has failed.
int vgpu_last_error_code(void);

// The `CUresult` of this thread's last failure; 0 where it was not the driver's.
int vgpu_last_error_cuda(void);

// The mediator's code of this thread's last failure, which is negative (docs/protocol.md); 0 where it was not the
// mediator's.
int vgpu_last_error_mediator(void);

// Whether what failed last in this thread may be tried again.
vgpu_retry vgpu_last_error_retry(void);

// The last failure of this thread, in one line; "" where nothing has. Valid until the next call of this library that
// fails in this thread, or the thread's end.
const char *vgpu_last_error_message(void);

// Advice on it, in one line; "" where nothing has failed. Valid as the message is.
const char *vgpu_last_error_advice(void);

// The compiler's messages, lines of text, where what failed last in this thread was `vgpu_module_compile`, because of its
// source; "" otherwise. Valid as the message is.
const char *vgpu_last_error_log(void);

// How many requests failed without anybody waiting for them, as far as this thread's last failure names them: the first 64.
// Copies those for which `requests` has room, the first ones first; with a `room` of 0 it may be NULL.
size_t vgpu_last_error_requests(vgpu_failed_request *requests,
                                size_t room);

// How many requests failed beside those that `vgpu_last_error_requests` names.
uint32_t vgpu_last_error_more_requests(void);

// The version of this library, as in "0.1.0".
const char *vgpu_version(void);

// Opens a session with the first mediator that answers.
//
// `endpoints` are tried in order, as in "xen:,local:/run/vgpu/vgpu.sock"; NULL: those in the environment's
// `VGPU_ENDPOINT`, or "xen:". `options` may be NULL.
int vgpu_open(const char *endpoints,
              const vgpu_options *options,
              vgpu_device **device);

// Ends the session of `device` in good order, once everything that was sent in it is done. If something of it failed and no
// call has said so, that is this call's failure. All handles of the session are gone with it, those of its lanes, memory,
// modules, streams and events too, whatever this returns: the session is over in any case. NULL is VGPU_OK.
int vgpu_close(vgpu_device *device);

// Another handle of the same device, with a lane of its own in the session: calls with it do not wait for calls that
// other threads make with `device`. Memory, modules, streams and events may be used with any handle of the session.
// The mediator limits how many there may be.
int vgpu_device_lane(vgpu_device *device,
                     vgpu_device **lane);

// Gives a handle of a device back, as from `vgpu_device_lane`, and lets the session go on. NULL is VGPU_OK.
int vgpu_device_release(vgpu_device *device);

// Copies the device's name to `name`, which has room for `bytes`, and a NUL behind it; cut where it does not fit.
int vgpu_device_name(vgpu_device *device,
                     char *name,
                     size_t bytes);

// The value of a `CUdevice_attribute`, by its number: 16 is the number of multiprocessors, 75 and 76 are the compute
// capability.
int vgpu_device_attribute(vgpu_device *device,
                          uint32_t attribute,
                          int32_t *value);

// How many devices this guest may use. A session uses one of them, which its options choose.
int vgpu_device_count(vgpu_device *device, uint32_t *count);

// Bytes of device memory that are free, and that this session may have.
int vgpu_memory_info(vgpu_device *device, uint64_t *free, uint64_t *total);

// Waits until the device has done everything that was sent in this session before. If something of it failed, that is
// this call's failure.
int vgpu_synchronize(vgpu_device *device);

// How many requests the last call with this handle of a device has sent that did not wait for the device: a launch, a copy,
// a fill, the record of an event or a wait for one. One, but several for a large copy, which goes in pieces. Copies the ids
// of those for which `ids` has room; with a `room` of 0 it may be NULL. A later failure names them, if it is theirs:
// `vgpu_last_error_requests`.
int vgpu_last_requests(vgpu_device *device,
                       uint32_t *ids,
                       size_t room,
                       size_t *count);

// Adds `elements` floats of `a` and `b` into `sum` on the device, and waits until all are there. `sum` has no element
// in common with `a` or `b`.
int vgpu_vector_add(vgpu_device *device,
                    const float *a,
                    const float *b,
                    float *sum,
                    size_t elements);

// Allocates `bytes` on the device. What they are is not said.
int vgpu_buffer_allocate(vgpu_device *device, size_t bytes, vgpu_buffer **buffer);

// Frees memory, once the work that was sent before is done. NULL is VGPU_OK.
int vgpu_buffer_free(vgpu_buffer *buffer);

// The device address of a buffer, as kernels take it; 0 for one without bytes.
int vgpu_buffer_address(vgpu_buffer *buffer, uint64_t *address);

// The bytes of a buffer.
int vgpu_buffer_size(vgpu_buffer *buffer, size_t *bytes);

// Copies `bytes` from `from` to byte `offset` of the buffer `to`. `from` has been read when this returns; the copy
// itself may be under way.
int vgpu_copy_to_device(vgpu_device *device,
                        vgpu_buffer *to,
                        size_t offset,
                        const void *from,
                        size_t bytes,
                        vgpu_stream *stream);

// Copies `bytes` from byte `offset` of the buffer `from` to `to`, once the work sent before is done, and waits until
// they are there. If something that was sent before has failed, that is this call's failure, and `to` holds a part of
// the copy, or none of it.
int vgpu_copy_from_device(vgpu_device *device,
                          void *to,
                          vgpu_buffer *from,
                          size_t offset,
                          size_t bytes,
                          vgpu_stream *stream);

// Copies `bytes` on the device, from byte `from_offset` of `from` to byte `to_offset` of `to`, without waiting. The two
// ranges may overlap only where they are the same.
int vgpu_copy_on_device(vgpu_device *device,
                        vgpu_buffer *to,
                        size_t to_offset,
                        vgpu_buffer *from,
                        size_t from_offset,
                        size_t bytes,
                        vgpu_stream *stream);

// Sets `elements` of `element_bytes` each (1, 2 or 4), from byte `offset` of the buffer on, which is a multiple of that,
// to the low bits of `value`, without waiting.
int vgpu_fill(vgpu_device *device,
              vgpu_buffer *to,
              size_t offset,
              uint32_t value,
              size_t element_bytes,
              size_t elements,
              vgpu_stream *stream);

// Allocates `bytes` of this program's memory, page-locked for the device (`cuMemHostAlloc`), which copies from it and to
// it by itself, and whose kernels reach it. Over endpoints other than `local:` it is ordinary memory, from and to which
// copies go like any others: `vgpu_pinned_is_page_locked` tells.
int vgpu_pinned_allocate(vgpu_device *device,
                         size_t bytes,
                         vgpu_pinned **pinned);

// Frees page-locked memory; its data is not to be used any more. Where a kernel may have its device address, this waits
// first until the device has done everything that was sent before, as `cuMemFreeHost` does. It is freed whatever this
// returns. NULL is VGPU_OK.
int vgpu_pinned_free(vgpu_pinned *pinned);

// The first byte, valid until the memory is freed or its session is closed. The program reads and writes it as it likes,
// but not what a copy or a kernel uses: `vgpu_pinned_wait` waits for copies.
int vgpu_pinned_data(vgpu_pinned *pinned,
                     void **data);

// The address of the first byte for kernels, which is an argument like that of a buffer; 0 where no kernel reaches it.
int vgpu_pinned_address(vgpu_pinned *pinned,
                        uint64_t *address);

// Whether the device copies from it and to it by itself: 1, or 0.
int vgpu_pinned_is_page_locked(vgpu_pinned *pinned, int *is_page_locked);

// Waits until no copy uses the memory. If something that was sent before failed, that is this call's failure.
int vgpu_pinned_wait(vgpu_pinned *pinned);

// Copies `bytes` from byte `from_offset` of page-locked memory to byte `to_offset` of the buffer `to`, without waiting
// where it is page-locked.
int vgpu_copy_pinned_to_device(vgpu_device *device,
                               vgpu_buffer *to,
                               size_t to_offset,
                               vgpu_pinned *from,
                               size_t from_offset,
                               size_t bytes,
                               vgpu_stream *stream);

// Copies `bytes` from byte `from_offset` of the buffer `from` to byte `to_offset` of page-locked memory, once the work
// sent before is done, without waiting where it is page-locked: `vgpu_pinned_wait` does.
int vgpu_copy_device_to_pinned(vgpu_device *device,
                               vgpu_pinned *to,
                               size_t to_offset,
                               vgpu_buffer *from,
                               size_t from_offset,
                               size_t bytes,
                               vgpu_stream *stream);

// Loads a module from `bytes` of PTX, a cubin or a fatbin.
int vgpu_module_load(vgpu_device *device, const void *image, size_t bytes, vgpu_module **module);

// Loads a module from CUDA C++, compiled for the device. `options` may be NULL. Kernels keep their names where they are
// `extern "C"`. A source that does not compile is VGPU_ERROR_INVALID_ARGUMENT, and `vgpu_last_error_log` has the
// compiler's messages; where nobody can compile, it is VGPU_ERROR_UNSUPPORTED.
int vgpu_module_compile(vgpu_device *device,
                        const char *source,
                        const vgpu_compile_options *options,
                        vgpu_module **module);

// Unloads a module, once the work that was sent before is done; its functions are gone with it. NULL is VGPU_OK.
int vgpu_module_unload(vgpu_module *module);

// The kernel `name` of a module, as the image has it. It is valid as long as the module is loaded; asked for again, it
// is the same.
int vgpu_module_function(vgpu_module *module,
                         const char *name,
                         vgpu_function **function);

// Launches a kernel: a grid of `grid_x` x `grid_y` x `grid_z` blocks of `block_x` x `block_y` x `block_z` threads, with
// `shared_bytes` of dynamic shared memory for each block. Number and sizes of the `arguments` are checked against the
// kernel's parameters; their values have been read when this returns.
//
// It does not wait: a failure of the kernel is that of the next `vgpu_synchronize` or `vgpu_copy_from_device`.
int vgpu_launch(vgpu_device *device,
                vgpu_function *function,
                uint32_t grid_x,
                uint32_t grid_y,
                uint32_t grid_z,
                uint32_t block_x,
                uint32_t block_y,
                uint32_t block_z,
                uint32_t shared_bytes,
                const vgpu_argument *arguments,
                size_t count,
                vgpu_stream *stream);

// A new stream. Wherever a call takes a stream, NULL is the device's default stream.
int vgpu_stream_create(vgpu_device *device, vgpu_stream **stream);

// The same with `flags` (0 or VGPU_STREAM_BLOCKING) and a priority: lower numbers first, 0 without a wish; the nearest that
// the device has is taken.
int vgpu_stream_create_with(vgpu_device *device,
                            uint32_t flags,
                            int32_t priority,
                            vgpu_stream **stream);

// Destroys a stream, once its work is done. NULL is VGPU_OK.
int vgpu_stream_destroy(vgpu_stream *stream);

// Waits until everything that was sent to the stream before is done. If something that was sent before failed, that is
// this call's failure. With NULL it waits for the whole session's work, as `vgpu_synchronize` does.
int vgpu_stream_synchronize(vgpu_device *device,
                            vgpu_stream *stream);

// Whether everything that was sent to the stream before is done: 1 or 0. The stream is not NULL.
int vgpu_stream_query(vgpu_device *device, vgpu_stream *stream, int *done);

// Has what is sent to the stream from now on wait for the event, as it was recorded last.
int vgpu_stream_wait_event(vgpu_device *device, vgpu_stream *stream, vgpu_event *event);

// A new event, which was not recorded yet.
int vgpu_event_create(vgpu_device *device, vgpu_event **event);

// The same without a time, which costs the device less to record: `vgpu_event_elapsed` refuses it.
int vgpu_event_create_without_timing(vgpu_device *device, vgpu_event **event);

// Destroys an event. NULL is VGPU_OK.
int vgpu_event_destroy(vgpu_event *event);

// Has the event come when the stream has done what was sent to it before.
int vgpu_event_record(vgpu_device *device, vgpu_event *event, vgpu_stream *stream);

// Waits until the event has come, as it was recorded last, in the lane of the device that made it.
int vgpu_event_synchronize(vgpu_event *event);

// Whether the event has come, as it was recorded last, or was never recorded: 1 or 0.
int vgpu_event_query(vgpu_event *event, int *done);

// The time on the device from one event to another that came later, in nanoseconds; 0 where it came earlier.
int vgpu_event_elapsed(vgpu_event *start,
                       vgpu_event *end,
                       uint64_t *nanoseconds);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VGPU_H */
