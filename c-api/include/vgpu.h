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

/* The attributes of a device: CUdevice_attribute of cuda.h, with VGPU_ in the place of CU_. */
typedef enum vgpu_device_attributes {
    VGPU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
    VGPU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X = 2,
    VGPU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y = 3,
    VGPU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z = 4,
    VGPU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X = 5,
    VGPU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y = 6,
    VGPU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z = 7,
    VGPU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK = 8,
    VGPU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY = 9,
    VGPU_DEVICE_ATTRIBUTE_WARP_SIZE = 10,
    VGPU_DEVICE_ATTRIBUTE_MAX_PITCH = 11,
    VGPU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK = 12,
    VGPU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13,
    VGPU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT = 14,
    VGPU_DEVICE_ATTRIBUTE_GPU_OVERLAP = 15,
    VGPU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    VGPU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT = 17,
    VGPU_DEVICE_ATTRIBUTE_INTEGRATED = 18,
    VGPU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY = 19,
    VGPU_DEVICE_ATTRIBUTE_COMPUTE_MODE = 20,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_WIDTH = 21,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_WIDTH = 22,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_HEIGHT = 23,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_WIDTH = 24,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_HEIGHT = 25,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_DEPTH = 26,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_LAYERED_WIDTH = 27,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_LAYERED_HEIGHT = 28,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_LAYERED_LAYERS = 29,
    VGPU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT = 30,
    VGPU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS = 31,
    VGPU_DEVICE_ATTRIBUTE_ECC_ENABLED = 32,
    VGPU_DEVICE_ATTRIBUTE_PCI_BUS_ID = 33,
    VGPU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID = 34,
    VGPU_DEVICE_ATTRIBUTE_TCC_DRIVER = 35,
    VGPU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE = 36,
    VGPU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH = 37,
    VGPU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
    VGPU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR = 39,
    VGPU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT = 40,
    VGPU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING = 41,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_LAYERED_WIDTH = 42,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_LAYERED_LAYERS = 43,
    VGPU_DEVICE_ATTRIBUTE_CAN_TEX2D_GATHER = 44,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_GATHER_WIDTH = 45,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_GATHER_HEIGHT = 46,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_WIDTH_ALTERNATE = 47,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_HEIGHT_ALTERNATE = 48,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_DEPTH_ALTERNATE = 49,
    VGPU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID = 50,
    VGPU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT = 51,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURECUBEMAP_WIDTH = 52,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURECUBEMAP_LAYERED_WIDTH = 53,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURECUBEMAP_LAYERED_LAYERS = 54,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE1D_WIDTH = 55,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE2D_WIDTH = 56,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE2D_HEIGHT = 57,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE3D_WIDTH = 58,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE3D_HEIGHT = 59,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE3D_DEPTH = 60,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE1D_LAYERED_WIDTH = 61,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE1D_LAYERED_LAYERS = 62,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE2D_LAYERED_WIDTH = 63,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE2D_LAYERED_HEIGHT = 64,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE2D_LAYERED_LAYERS = 65,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACECUBEMAP_WIDTH = 66,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACECUBEMAP_LAYERED_WIDTH = 67,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACECUBEMAP_LAYERED_LAYERS = 68,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_LINEAR_WIDTH = 69,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_LINEAR_WIDTH = 70,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_LINEAR_HEIGHT = 71,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_LINEAR_PITCH = 72,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_MIPMAPPED_WIDTH = 73,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_MIPMAPPED_HEIGHT = 74,
    VGPU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    VGPU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    VGPU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_MIPMAPPED_WIDTH = 77,
    VGPU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED = 78,
    VGPU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED = 79,
    VGPU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED = 80,
    VGPU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
    VGPU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR = 82,
    VGPU_DEVICE_ATTRIBUTE_MANAGED_MEMORY = 83,
    VGPU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD = 84,
    VGPU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD_GROUP_ID = 85,
    VGPU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED = 86,
    VGPU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO = 87,
    VGPU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS = 88,
    VGPU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS = 89,
    VGPU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED = 90,
    VGPU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 91,
    VGPU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1 = 92,
    VGPU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1 = 93,
    VGPU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR_V1 = 94,
    VGPU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH = 95,
    VGPU_DEVICE_ATTRIBUTE_COOPERATIVE_MULTI_DEVICE_LAUNCH = 96,
    VGPU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    VGPU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES = 98,
    VGPU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED = 99,
    VGPU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES = 100,
    VGPU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST = 101,
    VGPU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED = 102,
    VGPU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103,
    VGPU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_HANDLE_SUPPORTED = 104,
    VGPU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_KMT_HANDLE_SUPPORTED = 105,
    VGPU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR = 106,
    VGPU_DEVICE_ATTRIBUTE_GENERIC_COMPRESSION_SUPPORTED = 107,
    VGPU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE = 108,
    VGPU_DEVICE_ATTRIBUTE_MAX_ACCESS_POLICY_WINDOW_SIZE = 109,
    VGPU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED = 110,
    VGPU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK = 111,
    VGPU_DEVICE_ATTRIBUTE_SPARSE_CUDA_ARRAY_SUPPORTED = 112,
    VGPU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED = 113,
    VGPU_DEVICE_ATTRIBUTE_TIMELINE_SEMAPHORE_INTEROP_SUPPORTED = 114,
    VGPU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED = 115,
    VGPU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED = 116,
    VGPU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS = 117,
    VGPU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING = 118,
    VGPU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES = 119,
    VGPU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH = 120,
    VGPU_DEVICE_ATTRIBUTE_DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED = 121,
    VGPU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS = 122,
    VGPU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR = 123,
    VGPU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED = 124,
    VGPU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED = 125,
    VGPU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT = 126,
    VGPU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED = 127,
    VGPU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED = 128,
    VGPU_DEVICE_ATTRIBUTE_UNIFIED_FUNCTION_POINTERS = 129,
    VGPU_DEVICE_ATTRIBUTE_NUMA_CONFIG = 130,
    VGPU_DEVICE_ATTRIBUTE_NUMA_ID = 131,
    VGPU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED = 132,
    VGPU_DEVICE_ATTRIBUTE_MPS_ENABLED = 133,
    VGPU_DEVICE_ATTRIBUTE_HOST_NUMA_ID = 134,
    VGPU_DEVICE_ATTRIBUTE_D3D12_CIG_SUPPORTED = 135,
    VGPU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_ALGORITHM_MASK = 136,
    VGPU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_MAXIMUM_LENGTH = 137,
    VGPU_DEVICE_ATTRIBUTE_VULKAN_CIG_SUPPORTED = 138,
    VGPU_DEVICE_ATTRIBUTE_GPU_PCI_DEVICE_ID = 139,
    VGPU_DEVICE_ATTRIBUTE_GPU_PCI_SUBSYSTEM_ID = 140,
    VGPU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 141,
    VGPU_DEVICE_ATTRIBUTE_HOST_NUMA_MEMORY_POOLS_SUPPORTED = 142,
    VGPU_DEVICE_ATTRIBUTE_HOST_NUMA_MULTINODE_IPC_SUPPORTED = 143,
    VGPU_DEVICE_ATTRIBUTE_HOST_MEMORY_POOLS_SUPPORTED = 144,
    VGPU_DEVICE_ATTRIBUTE_HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 145,
    VGPU_DEVICE_ATTRIBUTE_HOST_ALLOC_DMA_BUF_SUPPORTED = 146,
    VGPU_DEVICE_ATTRIBUTE_ONLY_PARTIAL_HOST_NATIVE_ATOMIC_SUPPORTED = 147,
    VGPU_DEVICE_ATTRIBUTE_ATOMIC_REDUCTION_SUPPORTED = 148,
    VGPU_DEVICE_ATTRIBUTE_LOCALITY_DOMAIN_COUNT = 149,
    VGPU_DEVICE_ATTRIBUTE_MAX_OVERSIZED_SHARED_MEMORY_PER_BLOCK = 150,
    VGPU_DEVICE_ATTRIBUTE_D3D12_CIG_STREAMS_SUPPORTED = 151,
    VGPU_DEVICE_ATTRIBUTE_DMA_BUF_MMAP_SUPPORTED = 152,
    VGPU_DEVICE_ATTRIBUTE_LOGICAL_ENDPOINT_UNICAST_SUPPORTED = 153,
    VGPU_DEVICE_ATTRIBUTE_LOGICAL_ENDPOINT_MULTICAST_SUPPORTED = 154,
    VGPU_DEVICE_ATTRIBUTE_LOGICAL_ENDPOINT_COUNTED_OPS_SUPPORTED = 155,
    VGPU_DEVICE_ATTRIBUTE_LOGICAL_ENDPOINT_UNICAST_ACCESS_ON_OWNER_DEVICE_SUPPORTED = 156,
    VGPU_DEVICE_ATTRIBUTE_LOCALITY_DOMAIN_MULTIPROCESSOR_COUNT = 157,
    VGPU_DEVICE_ATTRIBUTE_LOGICAL_ENDPOINT_SUPPORTED_HANDLE_TYPES = 158,
    VGPU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_LOCALIZED_MEMORY_SUPPORTED = 161
} vgpu_device_attributes;

/* The attributes of a function: CUfunction_attribute of cuda.h, with VGPU_ in the place of CU_. */
typedef enum vgpu_function_attributes {
    VGPU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
    VGPU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    VGPU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES = 2,
    VGPU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
    VGPU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    VGPU_FUNC_ATTRIBUTE_PTX_VERSION = 5,
    VGPU_FUNC_ATTRIBUTE_BINARY_VERSION = 6,
    VGPU_FUNC_ATTRIBUTE_CACHE_MODE_CA = 7,
    VGPU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    VGPU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
    VGPU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET = 10,
    VGPU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH = 11,
    VGPU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT = 12,
    VGPU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH = 13,
    VGPU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14,
    VGPU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE = 15,
    VGPU_FUNC_ATTRIBUTE_DEVICE_NODE_UPDATE_SUPPORTED = 16,
    VGPU_FUNC_ATTRIBUTE_SHARED_MEMORY_MODE = 17
} vgpu_function_attributes;

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
    // The device, of those that this guest may use, from 0 on: `vgpu_list_devices` lists them.
    uint32_t device;
} vgpu_options;

// What does not change about a device.
typedef struct {
    // Bytes of device memory that a session may have.
    uint64_t total_memory;
    // The newest version of CUDA that the driver supports, as 1000 * major + 10 * minor.
    uint32_t driver_version;
    // The device's own bytes; all 0 where it has none.
    uint8_t uuid[16];
    // Its name, with a NUL behind it.
    char name[260];
    // At index k the value of `CUdevice_attribute` k, as of VGPU_DEVICE_ATTRIBUTE_WARP_SIZE; INT32_MIN where there is none.
    int32_t attributes[256];
} vgpu_device_info;

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

// Lists the devices that this guest may use, in a session of its own, which ends before this returns: `count` is how many
// there are, and the first ones are described in `devices`, as far as it has `room`. With a `room` of 0 it may be NULL. The
// index of one there is what `device` of `vgpu_options` chooses; here that is not looked at. `endpoints` and `options` are
// as for `vgpu_open`.
int vgpu_list_devices(const char *endpoints,
                      const vgpu_options *options,
                      vgpu_device_info *devices,
                      size_t room,
                      size_t *count);

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

// The value of a `CUdevice_attribute`, by its number, which `vgpu_device_attributes` names.
int vgpu_device_attribute(vgpu_device *device, uint32_t attribute, int32_t *value);

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

// Copies `height` rows of `width` bytes (`cuMemcpy2DAsync`): the first from `from`, each of the others from `from_pitch`
// bytes behind the one before it; the first to byte `to_offset` of the buffer `to`, the others every `to_pitch` bytes. No
// pitch is below `width`. `from` has been read when this returns; the copy itself may be under way.
int vgpu_copy_rows_to_device(vgpu_device *device,
                             vgpu_buffer *to,
                             size_t to_offset,
                             size_t to_pitch,
                             const void *from,
                             size_t from_pitch,
                             size_t width,
                             size_t height,
                             vgpu_stream *stream);

// Copies rows as `vgpu_copy_rows_to_device` does, from the buffer `from` to `to`, once the work sent before is done, and
// waits until they are there. What lies between the rows there stays as it is. If something that was sent before has failed,
// that is this call's failure, and `to` holds a part of the copy, or none of it.
int vgpu_copy_rows_from_device(vgpu_device *device,
                               void *to,
                               size_t to_pitch,
                               vgpu_buffer *from,
                               size_t from_offset,
                               size_t from_pitch,
                               size_t width,
                               size_t height,
                               vgpu_stream *stream);

// Copies rows as `vgpu_copy_rows_to_device` does, from byte `from_offset` of page-locked memory on, without waiting where it
// is page-locked. Each row is a request of its own there, unless nothing lies between the rows on either side.
int vgpu_copy_rows_pinned_to_device(vgpu_device *device,
                                    vgpu_buffer *to,
                                    size_t to_offset,
                                    size_t to_pitch,
                                    vgpu_pinned *from,
                                    size_t from_offset,
                                    size_t from_pitch,
                                    size_t width,
                                    size_t height,
                                    vgpu_stream *stream);

// Copies rows from the buffer `from` to page-locked memory, from its byte `to_offset` on, once the work sent before is done,
// without waiting where it is page-locked: `vgpu_pinned_wait` does. Requests are as for `vgpu_copy_rows_pinned_to_device`.
int vgpu_copy_rows_device_to_pinned(vgpu_device *device,
                                    vgpu_pinned *to,
                                    size_t to_offset,
                                    size_t to_pitch,
                                    vgpu_buffer *from,
                                    size_t from_offset,
                                    size_t from_pitch,
                                    size_t width,
                                    size_t height,
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

// The value of a `CUfunction_attribute`, by its number, which `vgpu_function_attributes` names.
int vgpu_function_attribute(vgpu_function *function, uint32_t attribute, int32_t *value);

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

// As `vgpu_launch`, with all blocks at once, so that they may wait for each other. A grid that the device has no room for
// fails with CUDA error 720.
int vgpu_launch_cooperative(vgpu_device *device,
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
