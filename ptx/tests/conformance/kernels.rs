//! Whole kernels: buffers before, buffers after, compared as the corpus's README says.

use vgpu_ptx::{Config, Device, Launch, Module};

use crate::{corpus, corpus_text, hex, ulps};

#[derive(Debug, Default)]
struct Case {
    name: String,
    module: String,
    kernel: String,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    cooperative: bool,
    buffers: Vec<Vec<u8>>,
    arguments: Vec<Argument>,
    sets: Vec<(String, Vec<u8>)>,
    outs: Vec<(usize, Vec<u8>)>,
    variables: Vec<(String, Vec<u8>)>,
}

#[derive(Debug)]
enum Argument {
    Pointer(usize),
    Bytes(Vec<u8>),
    /// Bytes with the address of a buffer among them.
    Struct(Vec<u8>, usize, usize),
}

fn cases() -> Vec<Case> {
    let mut list: Vec<Case> = Vec::new();
    for line in corpus_text("golden/kernels.txt").lines() {
        let w: Vec<&str> = line.split(' ').collect();
        let number = |k: usize| w[k].parse::<u32>().unwrap();
        match w[0] {
            "case" => list.push(Case {
                name: w[1].into(),
                module: w[3].into(),
                kernel: w[5].into(),
                grid: [number(7), number(8), number(9)],
                block: [number(11), number(12), number(13)],
                shared: number(15),
                cooperative: w.len() > 16,
                ..Case::default()
            }),
            _ => {
                let c = list.last_mut().unwrap();
                match w[0] {
                    "buf" if w[2] == "zero" => c.buffers.push(vec![0; number(3) as usize]),
                    "buf" => c.buffers.push(hex(w[2])),
                    "arg" if w[1] == "ptr" => {
                        c.arguments.push(Argument::Pointer(number(2) as usize))
                    }
                    "arg" if w.len() > 2 => c.arguments.push(Argument::Struct(
                        hex(w[1]),
                        number(3) as usize,
                        number(5) as usize,
                    )),
                    "arg" => c.arguments.push(Argument::Bytes(hex(w[1]))),
                    "set" => c.sets.push((w[1].into(), hex(w[2]))),
                    "out" => c.outs.push((number(1) as usize, hex(w[2]))),
                    "var" => c.variables.push((w[1].into(), hex(w[2]))),
                    _ => {}
                }
            }
        }
    }
    list
}

/// The tolerated difference between two results.
enum Rule {
    Exact,
    /// Words of f32: within this many units, or this absolute difference.
    F32(u32, f64),
    /// The same, but only for these words out of each thread's group.
    Words(usize, &'static [usize], u32, f64),
    F64(f64),
    /// The same, but only for these words out of each thread's group.
    F64Words(usize, &'static [usize], f64),
    /// All halves within this many units.
    Half(u32),
    /// Neither is checked.
    Plausible,
    /// Integers, except quotients by zero: words per thread, and those to skip.
    Division(usize),
}

fn rule(c: &Case, buffer: usize) -> Rule {
    match (c.name.as_str(), buffer) {
        ("math_f32" | "math_f32_fast" | "rounding_approx", _) => Rule::F32(300, 2e-5),
        ("rounding_f32", _) => Rule::Words(28, &[22, 23, 24, 25, 26], 2, 0.0),
        ("math_f64" | "matmul_naive_f64", _) => Rule::F64(1e-14),
        // Element 32 adds a word of shared memory that no thread has set.
        ("shared_pool", _) => Rule::Words(100, &[64, 65], u32::MAX, f64::MAX),
        ("rounding_f64", _) => Rule::F64Words(14, &[11, 12], 1e-6),
        ("half_ops", _) => Rule::Half(1),
        ("softmax" | "nbody" | "layernorm", _) => Rule::F32(40, 1e-6),
        ("jacobi", 2) => Rule::F32(0, 1e-4),
        ("wmma_f16" | "mma_m16n8k8" | "matmul", _) => Rule::F32(0, 1e-3),
        ("clocks" | "int_div_zero", _) => Rule::Plausible,
        ("int32_arith", _) => Rule::Division(4),
        ("int64_arith", _) => Rule::Division(8),
        _ => Rule::Exact,
    }
}

/// The first difference between two buffers beyond the tolerance.
fn differs(rule: &Rule, c: &Case, got: &[u8], want: &[u8]) -> Option<String> {
    let word = |b: &[u8], k: usize| u32::from_le_bytes(b[4 * k..4 * k + 4].try_into().unwrap());
    let near = |g: u32, w: u32, n: u32, by: f64| {
        let (x, y) = (f64::from(f32::from_bits(g)), f64::from(f32::from_bits(w)));
        g == w
            || x.is_nan() && y.is_nan()
            || ulps(g, w) <= n && !x.is_nan()
            || (x - y).abs() <= by * y.abs().max(1.0)
    };
    let words = got.len() / 4;
    let bad = match rule {
        Rule::Plausible => None,
        Rule::Exact => (0..got.len()).find(|k| got[*k] != want[*k]).map(|k| k / 4),
        Rule::F32(n, by) => (0..words).find(|k| !near(word(got, *k), word(want, *k), *n, *by)),
        Rule::Words(each, loose, n, by) => (0..words).find(|k| {
            let (g, w) = (word(got, *k), word(want, *k));
            if loose.contains(&(k % each)) {
                !near(g, w, *n, *by)
            } else {
                g != w
            }
        }),
        Rule::F64(by) => (0..words / 2)
            .find(|k| {
                let f = |b: &[u8]| f64::from_le_bytes(b[8 * k..8 * k + 8].try_into().unwrap());
                let (g, w) = (f(got), f(want));
                !(g.to_bits() == w.to_bits()
                    || g.is_nan() && w.is_nan()
                    || (g - w).abs() <= by * w.abs())
            })
            .map(|k| 2 * k),
        Rule::F64Words(each, loose, by) => (0..words / 2)
            .find(|k| {
                let f = |b: &[u8]| f64::from_le_bytes(b[8 * k..8 * k + 8].try_into().unwrap());
                let (g, w) = (f(got), f(want));
                let near = loose.contains(&(k % each)) && (g - w).abs() <= by * w.abs();
                !(g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan() || near)
            })
            .map(|k| 2 * k),
        Rule::Half(n) => (0..got.len() / 2)
            .find(|k| {
                let h = |b: &[u8]| {
                    i32::from(u16::from_le_bytes(b[2 * k..2 * k + 2].try_into().unwrap()))
                };
                (h(got) - h(want)).unsigned_abs() > *n
            })
            .map(|k| k / 2),
        Rule::Division(size) => {
            let each = c.outs[0].1.len() / (c.buffers[1].len() / size) / size;
            (0..got.len() / size)
                .find(|k| {
                    let (thread, at) = (k / each, k % each);
                    let zero = c.buffers[1][thread * size..(thread + 1) * size]
                        .iter()
                        .all(|b| *b == 0);
                    !(zero && (1..=4).contains(&at))
                        && got[k * size..(k + 1) * size] != want[k * size..(k + 1) * size]
                })
                .map(|k| k * size / 4)
        }
    };
    bad.map(|k| {
        let around = |b: &[u8]| {
            format!(
                "{:08x} {:08x}",
                word(b, k.min(words - 1)),
                word(b, (k + 1).min(words - 1))
            )
        };
        format!("word {k}: {}, not {}", around(got), around(want))
    })
}

fn run(c: &Case, workers: u32) -> Result<(), String> {
    let module = Module::load(&corpus(&c.module)).map_err(|e| e.to_string())?;
    let device = Device::new(Config {
        workers,
        ..Config::default()
    });
    let loaded = device.load(&module).map_err(|e| e.to_string())?;
    let kernel = module.kernel(&c.kernel).map_err(|e| e.to_string())?;
    let at: Vec<u64> = c
        .buffers
        .iter()
        .map(|b| {
            let a = device.allocate(b.len() as u64).unwrap();
            device.write(a, b).unwrap();
            a
        })
        .collect();
    for (name, value) in &c.sets {
        device
            .write(loaded.variable(name).unwrap().0, value)
            .unwrap();
    }
    let mut params = Vec::new();
    for (a, p) in c.arguments.iter().zip(&kernel.parameters) {
        params.resize(p.offset as usize, 0);
        match a {
            Argument::Pointer(k) => params.extend(at[*k].to_le_bytes()),
            Argument::Bytes(b) => params.extend(b),
            Argument::Struct(b, k, off) => {
                let mut b = b.clone();
                b[*off..off + 8].copy_from_slice(&at[*k].to_le_bytes());
                params.extend(b);
            }
        }
    }
    params.resize(kernel.parameter_bytes as usize, 0);
    let mut how = Launch::new(c.grid, c.block);
    (how.shared, how.cooperative) = (c.shared, c.cooperative);
    how.deadline = Some(std::time::Duration::from_secs(60));
    device
        .launch(&loaded, &kernel, &how, &params)
        .map_err(|e| e.to_string())?;
    for (k, before) in c.buffers.iter().enumerate() {
        let mut got = vec![0; before.len()];
        device.read(at[k], &mut got).unwrap();
        let want = c.outs.iter().find(|o| o.0 == k).map_or(before, |o| &o.1);
        let rule = if want == before {
            Rule::Exact
        } else {
            rule(c, k)
        };
        if let Some(d) = differs(&rule, c, &got, want) {
            return Err(format!("buffer {k} {d}"));
        }
    }
    for (name, want) in &c.variables {
        let (a, size) = loaded.variable(name).unwrap();
        let mut got = vec![0; size as usize];
        device.read(a, &mut got).unwrap();
        if got != *want {
            return Err(format!("variable {name}: {got:x?}, not {want:x?}"));
        }
    }
    Ok(())
}

#[test]
fn every_launch_leaves_what_the_gpu_left() {
    for workers in [1, 3] {
        let cases = cases();
        assert_eq!(cases.len(), 110);
        let wrong: Vec<String> = cases
            .iter()
            .filter_map(|c| {
                run(c, workers)
                    .err()
                    .map(|e| format!("{} ({}): {e}", c.name, c.module))
            })
            .collect();
        assert!(
            wrong.is_empty(),
            "{} of {} with {workers} workers:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}
