//! The `CUresult`s that the executors name themselves, as `cuda.h` has them: each is `CUDA_ERROR_` and the
//! name here.

pub(super) const INVALID_VALUE: i32 = 1;
pub(super) const OUT_OF_MEMORY: i32 = 2;
pub(super) const NO_DEVICE: i32 = 100;
pub(super) const INVALID_DEVICE: i32 = 101;
pub(super) const INVALID_IMAGE: i32 = 200;
pub(super) const UNSUPPORTED_LIMIT: i32 = 215;
pub(super) const INVALID_HANDLE: i32 = 400;
pub(super) const ILLEGAL_STATE: i32 = 401;
pub(super) const NOT_FOUND: i32 = 500;
/// Not an error, but the answer "not yet" of a query.
pub(super) const NOT_READY: i32 = 600;
pub(super) const LAUNCH_TIMEOUT: i32 = 702;
pub(super) const PRIMARY_CONTEXT_ACTIVE: i32 = 708;
pub(super) const CONTEXT_IS_DESTROYED: i32 = 709;
pub(super) const COOPERATIVE_LAUNCH_TOO_LARGE: i32 = 720;
pub(super) const NOT_SUPPORTED: i32 = 801;
pub(super) const STREAM_CAPTURE_UNSUPPORTED: i32 = 900;
pub(super) const STREAM_CAPTURE_INVALIDATED: i32 = 901;
pub(super) const STREAM_CAPTURE_MERGE: i32 = 902;
pub(super) const STREAM_CAPTURE_UNMATCHED: i32 = 903;
pub(super) const STREAM_CAPTURE_UNJOINED: i32 = 904;
pub(super) const STREAM_CAPTURE_ISOLATION: i32 = 905;
pub(super) const STREAM_CAPTURE_IMPLICIT: i32 = 906;
pub(super) const CAPTURED_EVENT: i32 = 907;
pub(super) const STREAM_CAPTURE_WRONG_THREAD: i32 = 908;
pub(super) const INVALID_CLUSTER_SIZE: i32 = 912;
pub(super) const UNKNOWN: i32 = 999;
