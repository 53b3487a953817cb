//! Speed of kernels on one thread, beside the same in plain Rust: `cargo run --release -p vgpu-ptx
//! --example speed`.
//!
//! Figures are the best of several rounds. A thread-instruction is one instruction of one thread.
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::hint::black_box;
use std::time::Instant;

use vgpu_ptx::{Config, Device, Launch, Loaded, Module};

const ROUNDS: usize = 9;

/// Seconds of the best round.
fn best(mut f: impl FnMut()) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let t = Instant::now();
            f();
            t.elapsed().as_secs_f64()
        })
        .fold(f64::MAX, f64::min)
}

/// Whether `name` is selected: it contains one of the arguments, or there are none.
fn wanted(name: &str) -> bool {
    std::env::args().skip(1).all(|word| name.contains(&word))
}

/// A module on a device.
struct On {
    device: Device,
    module: Module,
    loaded: Loaded,
}

impl On {
    fn new(ptx: &[u8], workers: u32, wide_vectors: bool) -> Self {
        let device = Device::new(Config {
            workers,
            wide_vectors,
            ..Config::default()
        });
        let module = Module::load(ptx).expect("the corpus loads");
        let loaded = device.load(&module).expect("it fits");
        Self {
            device,
            module,
            loaded,
        }
    }

    fn buffer(&self, words: impl Iterator<Item = f32>) -> u64 {
        let bytes: Vec<u8> = words.flat_map(f32::to_le_bytes).collect();
        let at = self.device.allocate(bytes.len() as u64).expect("memory");
        self.device.write(at, &bytes).expect("the buffer is there");
        at
    }

    /// Runs a kernel, if it is selected, and prints its speed. Returns the seconds.
    fn run(
        &self,
        name: &str,
        kernel: &str,
        size: ([u32; 3], [u32; 3]),
        params: &[&[u8]],
        note: &str,
    ) -> f64 {
        if !wanted(name) {
            return 0.0;
        }
        let k = self.module.kernel(kernel).expect("the kernel is there");
        let mut packed = Vec::new();
        for (p, v) in k.parameters.iter().zip(params) {
            packed.resize(p.offset as usize, 0);
            packed.extend(*v);
        }
        let mut steps = 0;
        let seconds = best(|| {
            let report =
                self.device
                    .launch(&self.loaded, &k, &Launch::new(size.0, size.1), &packed);
            steps = report.expect("it runs").steps;
        });
        line(name, seconds, steps as f64 * 32.0, note);
        seconds
    }
}

fn line(name: &str, seconds: f64, thread_instructions: f64, note: &str) {
    println!(
        "{name:44} {:9.3} ms {:8.2} G/s  {note}",
        seconds * 1e3,
        thread_instructions / seconds / 1e9
    );
}

/// saxpy as a loop: one warp goes over all elements, 10 instructions a round.
const STRIDE: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry saxpy_loop(.param .f32 a, .param .u64 x, .param .u64 y, .param .u32 n) {
    .reg .f32 %f<4>; .reg .b32 %r<4>; .reg .b64 %x, %y, %i, %p, %q; .reg .pred %go;
    ld.param.f32 %f1, [a];
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    ld.param.u32 %r2, [n];
    mov.u32 %r1, %tid.x;
    mov.u32 %r3, %ntid.x;
L:  mul.wide.u32 %i, %r1, 4;
    add.s64 %p, %x, %i;
    add.s64 %q, %y, %i;
    ld.global.f32 %f2, [%p];
    ld.global.f32 %f3, [%q];
    fma.rn.f32 %f3, %f2, %f1, %f3;
    st.global.f32 [%q], %f3;
    add.u32 %r1, %r1, %r3;
    setp.lt.u32 %go, %r1, %r2;
    @%go bra L;
    ret;
}";

/// The loop of the mandelbrot kernel for one point.
fn mandelbrot(cx: f32, cy: f32, limit: i32) -> i32 {
    let (mut xx, mut yy, mut x, mut y) = (0f32, 0f32, 0f32, 0f32);
    let mut k = 0;
    loop {
        let next = cx + (xx - yy);
        y = (x + x) * y + cy;
        k += 1;
        (xx, yy, x) = (next * next, y * y, next);
        if !(k < limit && xx + yy <= 4.0) {
            return k;
        }
    }
}

fn main() {
    let mandel = include_bytes!("../tests/corpus/mandelbrot.ptx");
    let saxpy = include_bytes!("../tests/corpus/saxpy.ptx");
    let limit = 20_000i32;
    let t = best(|| {
        black_box(mandelbrot(
            black_box(-0.1),
            black_box(0.1),
            black_box(limit),
        ));
    });
    line(
        "mandelbrot, plain Rust, one point",
        t,
        f64::from(limit) * 13.0,
        "",
    );
    for wide in [false, true] {
        let which = if wide { "AVX2 if there" } else { "baseline" };
        let on = On::new(mandel, 1, wide);
        let out = on.buffer((0..32 * 8).map(|_| 0.0));
        let f = |x: f32| x.to_le_bytes();
        // Points that never escape: all lanes do the same number of rounds.
        let p = [
            &out.to_le_bytes()[..],
            &32i32.to_le_bytes(),
            &8i32.to_le_bytes(),
            &f(-0.1),
            &f(0.1),
            &f(0.0),
            &f(0.0),
            &limit.to_le_bytes(),
        ];
        on.run(
            &format!("mandelbrot, {which}"),
            "mandelbrot_f32",
            ([1; 3], [32, 8, 1]),
            &p,
            "target 2 and 4",
        );
        let spread = [
            &out.to_le_bytes()[..],
            &32i32.to_le_bytes(),
            &8i32.to_le_bytes(),
            &f(-2.0),
            &f(-1.5),
            &f(0.08),
            &f(0.4),
            &2000i32.to_le_bytes(),
        ];
        on.run(
            &format!("mandelbrot, lanes apart, {which}"),
            "mandelbrot_f32",
            ([1; 3], [32, 8, 1]),
            &spread,
            "counts lanes that wait",
        );

        let n = 1usize << 20;
        let count = i32::try_from(n).unwrap_or(0).to_le_bytes();
        for (name, ptx, kernel, [blocks, threads]) in [
            ("saxpy in a loop", STRIDE.as_bytes(), "saxpy_loop", [1, 32]),
            (
                "saxpy, a thread an element",
                &saxpy[..],
                "saxpy",
                [4096, 256],
            ),
        ] {
            let on = On::new(ptx, 1, wide);
            let (x, y) = (
                on.buffer((0..n).map(|k| k as f32)),
                on.buffer((0..n).map(|_| 1.0)),
            );
            let p = [
                &2.5f32.to_le_bytes()[..],
                &x.to_le_bytes(),
                &y.to_le_bytes(),
                &count,
            ];
            on.run(
                &format!("{name}, {which}"),
                kernel,
                ([blocks, 1, 1], [threads, 1, 1]),
                &p,
                "target 1.5 and 3",
            );
        }

        let on = On::new(include_bytes!("../tests/corpus/vector_add.ptx"), 1, wide);
        let (a, b, c) = (
            on.buffer((0..n).map(|k| k as f32)),
            on.buffer((0..n).map(|_| 1.0)),
            on.buffer((0..n).map(|_| 0.0)),
        );
        let p = [
            &a.to_le_bytes()[..],
            &b.to_le_bytes(),
            &c.to_le_bytes(),
            &count,
        ];
        on.run(
            &format!("vector add of {n}, {which}"),
            "vector_add",
            ([4096, 1, 1], [256, 1, 1]),
            &p,
            "target 25 ms",
        );

        let on = On::new(include_bytes!("../tests/corpus/matmul_tiled.ptx"), 1, wide);
        let m = 256usize;
        let (a, b, c) = (
            on.buffer((0..m * m).map(|k| k as f32)),
            on.buffer((0..m * m).map(|_| 1.0)),
            on.buffer((0..m * m).map(|_| 0.0)),
        );
        let p = [
            &a.to_le_bytes()[..],
            &b.to_le_bytes(),
            &c.to_le_bytes(),
            &256i32.to_le_bytes(),
        ];
        on.run(
            &format!("matrix product of 256, {which}"),
            "matmul_tiled",
            ([16, 16, 1], [16, 16, 1]),
            &p,
            "shared memory and barriers",
        );

        let on = On::new(include_bytes!("../tests/corpus/algorithms.ptx"), 1, wide);
        let bodies = 2048i32;
        let (a, b) = (
            on.buffer((0..4 * bodies).map(|k| (k * 37 % 101) as f32)),
            on.buffer((0..3 * bodies).map(|_| 0.0)),
        );
        on.run(
            &format!("nbody of {bodies}, {which}"),
            "nbody",
            ([32, 1, 1], [64, 1, 1]),
            &[&a.to_le_bytes(), &b.to_le_bytes(), &bodies.to_le_bytes()],
            "rsqrt.approx",
        );
    }
    let n = 1usize << 20;
    let (x, mut y): (Vec<f32>, Vec<f32>) = ((0..n).map(|k| k as f32).collect(), vec![1.0; n]);
    let t = best(|| {
        for (y, x) in y.iter_mut().zip(&x) {
            *y += 2.5 * x;
        }
        black_box(&mut y);
    });
    line(
        "saxpy, plain Rust",
        t,
        n as f64 * 9.0,
        "9 instructions an element",
    );

    let big = include_bytes!("../tests/corpus/coop_groups.ptx");
    let t = best(|| {
        black_box(Module::load(black_box(big)).expect("it loads"));
    });
    println!(
        "loading {} bytes: {:.2} ms (target 20 for 100 KB)",
        big.len(),
        t * 1e3
    );
    let long = include_bytes!("../tests/corpus/algorithms.ptx");
    let t = best(|| {
        black_box(Module::load(black_box(long)).expect("it loads"));
    });
    println!(
        "loading {} bytes, nothing but code: {:.2} ms",
        long.len(),
        t * 1e3
    );
}
