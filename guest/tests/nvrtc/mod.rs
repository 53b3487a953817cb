//! Whether there is an NVRTC for tests that run what it makes.

use vgpu_nvrtc::{Nvrtc, Version};

/// The newest version of CUDA whose PTX the `cpu` executor loads.
const NEWEST: Version = Version {
    major: 13,
    minor: 0,
};

/// Says so loudly where there is none.
pub(crate) fn has_nvrtc() -> bool {
    match Nvrtc::open(Some(NEWEST)) {
        Ok(nvrtc) if nvrtc.version() <= NEWEST => true,
        Ok(nvrtc) => {
            let version = nvrtc.version();
            test_skip::skipped(format!(
                "NVRTC {version}, whose PTX needs a driver newer than {NEWEST}"
            ));
            false
        }
        Err(error) => {
            test_skip::skipped(format!("{error}; {}", error.advice()));
            false
        }
    }
}
