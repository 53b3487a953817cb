#![no_main]

use libfuzzer_sys::fuzz_target;
use vgpu_fuzz_targets::target;

fuzz_target!(|data: &[u8]| (target("cpu_session").run)(data));
