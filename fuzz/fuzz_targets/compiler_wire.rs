#![no_main]

use libfuzzer_sys::fuzz_target;
use vgpu_fuzz_targets::target;

fuzz_target!(|data: &[u8]| (target("compiler_wire").run)(data));
