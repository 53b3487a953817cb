//! A warp that others wait for gets its turn.

use vgpu_ptx::{Config, Device, Launch, Module};

/// Each warp but the last spins until the last one has written.
const SPIN: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p) {
    .reg .b64 a; .reg .b32 v, t; .reg .pred q;
    .shared .align 4 .b8 word[4];
    ld.param.u64 a, [p];
    mov.u32 t, %tid.x;
    setp.ge.u32 q, t, 992;
    @q bra LAST;
W:  ld.volatile.shared.u32 v, [word];
    setp.ne.u32 q, v, 7;
    @q bra W;
    red.global.add.u32 [a], 1;
    ret;
LAST:
    mov.u32 v, 7;
    st.volatile.shared.u32 [word], v;
    ret;
}
";

#[test]
fn warps_that_wait_for_a_warp_of_their_block_end() {
    let module = Module::load(SPIN.as_bytes()).unwrap();
    let device = Device::new(Config {
        workers: 1,
        ..Config::default()
    });
    let loaded = device.load(&module).unwrap();
    let out = device.allocate(4).unwrap();
    let how = Launch {
        // A thousand times the need.
        steps: 100_000_000,
        ..Launch::new([1; 3], [1024, 1, 1])
    };
    let kernel = module.kernel("k").unwrap();
    device
        .launch(&loaded, &kernel, &how, &out.to_le_bytes())
        .unwrap();
    let mut n = [0; 4];
    device.read(out, &mut n).unwrap();
    assert_eq!(u32::from_le_bytes(n), 992);
}
