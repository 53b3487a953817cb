//! Meanings and remedies of the codes with which a driver refuses to start.
//!
//! The codes are those that `cuInit`, the opening of a context and the loading of the kernel can give,
//! by NVIDIA's documentation of the driver API. The driver's own text for them names no remedy.

use std::ffi::c_int;

/// One code in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Words {
    /// Why; empty where the driver's own text says as much.
    pub(super) cause: &'static str,
    /// The remedy, in one line.
    pub(super) advice: &'static str,
    /// Others have what is missing, and may give it back.
    pub(super) busy: bool,
}

const fn lacking(cause: &'static str, advice: &'static str) -> Words {
    Words {
        cause,
        advice,
        busy: false,
    }
}

const fn busy(cause: &'static str, advice: &'static str) -> Words {
    Words {
        cause,
        advice,
        busy: true,
    }
}

/// `code` in words.
pub(super) fn of(code: c_int) -> Words {
    match code {
        // CUDA_ERROR_OUT_OF_MEMORY
        2 => busy(
            "the GPU has no memory left for another context",
            "free memory on the GPU (`nvidia-smi` shows who uses it)",
        ),
        // CUDA_ERROR_NOT_INITIALIZED
        3 => lacking(
            "the driver did not start",
            "see `dmesg` for lines with NVRM, and try `nvidia-smi`",
        ),
        // CUDA_ERROR_STUB_LIBRARY
        34 => lacking(
            "libcuda.so is the toolkit's stub and no driver",
            "install NVIDIA's driver, or take the stubs folder out of LD_LIBRARY_PATH",
        ),
        // CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER
        36 => lacking(
            "the driver is too old",
            "install NVIDIA's driver of version 520 or later",
        ),
        // CUDA_ERROR_DEVICE_UNAVAILABLE
        46 => busy(
            "another process has the GPU for itself, or its compute mode forbids it",
            "end that process (`nvidia-smi` shows it), or share the GPU: `nvidia-smi -c DEFAULT`",
        ),
        // CUDA_ERROR_NO_DEVICE
        100 => lacking(
            "",
            "check that `nvidia-smi` lists the GPU, that Xen does not hide it from this domain \
             (xen-pciback), and CUDA_VISIBLE_DEVICES",
        ),
        // CUDA_ERROR_INVALID_DEVICE
        101 => lacking(
            "no GPU has the number or name that was asked for",
            "set CUDA_VISIBLE_DEVICES to a GPU that `nvidia-smi -L` lists, or unset it",
        ),
        // CUDA_ERROR_DEVICE_NOT_LICENSED
        102 => lacking(
            "this virtual GPU has no licence",
            "see `nvidia-smi -q` under License, and the service nvidia-gridd",
        ),
        // CUDA_ERROR_NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION
        209 | 218 | 222 => lacking(
            "the driver cannot compile the kernel for this GPU",
            "install NVIDIA's driver of version 520 or later",
        ),
        // CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        221 => lacking(
            "the driver's compiler is missing",
            "install the driver's PTX compiler (libnvidia-ptxjitcompiler.so.1)",
        ),
        // CUDA_ERROR_OPERATING_SYSTEM
        304 => lacking(
            "the kernel refused the driver something",
            "check the permissions of /dev/nvidia* and the limits (`ulimit -a`), and see `dmesg`",
        ),
        // CUDA_ERROR_NOT_SUPPORTED
        801 => lacking("", "see `dmesg` for lines with NVRM"),
        // CUDA_ERROR_SYSTEM_NOT_READY
        802 => lacking(
            "the fabric manager of GPUs joined by NVSwitch is not running, or not ready yet",
            "start it (`systemctl start nvidia-fabricmanager`, of the driver's version) and see \
             `nvidia-smi -q` under Fabric",
        ),
        // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        803 => lacking(
            "the driver's library and kernel module are of different versions",
            "reboot, or load the module anew",
        ),
        // CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        804 => lacking(
            "libcuda.so.1 is the one for forward compatibility, which this GPU does not support",
            "take its folder (cuda-compat) out of LD_LIBRARY_PATH and ld.so.conf, or install a newer \
             driver",
        ),
        // CUDA_ERROR_MPS_CONNECTION_FAILED, RPC_FAILURE, SERVER_NOT_READY, CLIENT_TERMINATED
        805..=807 | 810 => lacking(
            "the server of the multi-process service (MPS) does not answer",
            "start it (`nvidia-cuda-mps-control -d`), or unset CUDA_MPS_PIPE_DIRECTORY",
        ),
        // CUDA_ERROR_MPS_MAX_CLIENTS_REACHED, MAX_CONNECTIONS_REACHED
        808 | 809 => busy(
            "the multi-process service (MPS) has as many clients as it takes",
            "end one of them, or give this mediator fewer sessions (limits.max_sessions)",
        ),
        // CUDA_ERROR_UNKNOWN
        999 => lacking("", "see `dmesg`, and try `modprobe nvidia-uvm`"),
        _ => lacking("", "see `dmesg` for lines with NVRM, and try `nvidia-smi`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_line_of_advice_and_those_of_others_are_busy() {
        for code in 0..1000 {
            let words = of(code);
            assert!(!words.advice.is_empty() && !words.advice.contains('\n'));
            assert!(!words.cause.contains('\n'));
            assert_eq!(words.busy, [2, 46, 808, 809].contains(&code), "{code}");
        }
    }
}
