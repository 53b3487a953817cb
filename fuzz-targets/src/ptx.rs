//! PTX of a hostile guest: its text, and the execution of any instructions.

use std::sync::LazyLock;
use std::time::Duration;

use vgpu_ptx::table::{TABLE, expand};
use vgpu_ptx::{Code, Config, Device, Launch, Module, Options};

use crate::input::Input;

/// Longest log in bytes that a module can cause.
const LOG: usize = 64 << 10;

const OPTIONS: Options = Options {
    version: (u32::MAX, 0),
    target: u32::MAX,
};

/// Any bytes as a module.
pub(crate) fn module(data: &[u8]) {
    match Module::load_with(data, &OPTIONS) {
        Err(e) => assert!(
            e.text.len() < LOG + 4 * data.len(),
            "a log longer than its cause"
        ),
        Ok(m) => {
            for (name, kernel) in m.kernels() {
                match kernel {
                    Ok(k) => assert_eq!(k.name, name),
                    Err(e) => assert_eq!(e.code, Code::InvalidPtx),
                }
            }
            // A module that is too large for a device is refused there.
            let _ = Device::new(config()).load(&m);
        }
    }
}

pub(crate) fn module_seeds() -> Vec<Vec<u8>> {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
    let bodies = [
        ".visible .entry k(.param .u64 p, .param .align 8 .b8 s[12]) .maxntid 64, 1, 1 { .reg .b64 %rd<4>; .reg .pred %p; ld.param.u64 %rd1, [p]; @%p ret; L: bra.uni L; }",
        ".global .align 4 .u32 a[3] = { 1, -2, (3 + 4) * 2 };\n.const .u64 b = generic(a)+4;\n.extern .shared .align 16 .b8 d[];\n.visible .entry k() { .reg .b32 %r<9>; { .reg .b32 x; mov.b32 {_, x}, 5; } mov.u32 %r1, %tid.x; st.shared.v2.u32 [d+8], {%r1, 7}; bar.sync 0; ret; }",
        ".func (.param .b32 r) f(.param .b32 a) { .reg .b32 %r<3>; ld.param.u32 %r1, [a]; st.param.b32 [r], %r1; ret; }\n.entry k() { .reg .b32 %r; { .param .b32 x; .param .b32 y; st.param.b32 [x], 3; call.uni (y), f, (x); ld.param.b32 %r, [y]; } ret; }",
        ".entry k() { .reg .b32 i; .reg .b64 f; t: .branchtargets A, B; proto: .callprototype (.param .b32 _) _ (.param .b64 _); brx.idx i, t; A: trap; B: exit; }",
        ".section .debug_str { .b8 1, 2 }\n.file 1 \"a\"\n.entry k() { .loc 1 2 3\n.pragma \"nounroll\"; ret; }",
    ];
    bodies
        .iter()
        .map(|b| format!("{head}{b}").into_bytes())
        .collect()
}

/// All forms of the table of instructions.
static FORMS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| TABLE.iter().flat_map(|row| row.forms).copied().collect());

fn config() -> Config {
    Config {
        memory: 16 << 20,
        run_memory: 16 << 20,
        heap: 4096,
        workers: 1,
        ..Config::default()
    }
}

/// One instruction, its operands chosen by the input.
fn instruction(input: &mut Input<'_>) -> String {
    let form = FORMS[usize::from(input.u16()) % FORMS.len()];
    let choices = expand(form);
    let text = &choices[usize::from(input.u16()) % choices.len()];
    let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
    let combined = [".and.", ".or.", ".xor."]
        .iter()
        .any(|word| opcode.contains(word));
    let operands = operands.replace('?', if combined { ", P" } else { "" });
    let special = operands.contains('%');
    let mut out = String::new();
    match input.u8() % 8 {
        0 => out += "@p1 ",
        1 => out += "@!p2 ",
        _ => {}
    }
    out += opcode;
    out.push(' ');
    for c in operands.chars() {
        let n = input.u8() % 8;
        match c {
            _ if special && !matches!(c, 'R' | 'D') => out.push(c),
            'H' => out += &format!("h{n}"),
            'R' => out += &format!("r{n}"),
            'D' => out += &format!("d{n}"),
            'P' => out += &format!("p{n}"),
            'I' => out += &n.to_string(),
            'A' if n < 6 => out += &format!("a+{}", i32::from(n) * 16),
            'A' => out += &format!("d{n}"),
            'S' if n < 6 => out += &format!("s+{}", i32::from(n) * 16),
            'S' => out += &format!("r{n}"),
            'M' => out += ["-1", "r0", "0xffff", "1"][usize::from(n) % 4],
            'L' => out += &format!("L{}", n % 4),
            c => out.push(c),
        }
    }
    out + ";\n"
}

/// A kernel of instructions that the input chooses, run until its end, its fault, or the end of its
/// budget.
pub(crate) fn kernel(data: &[u8]) {
    let mut input = Input::new(data);
    let mut text = String::from(
        ".version 9.0\n.target sm_90\n.address_size 64\n.func nothing { ret; }\n\
         .visible .entry k(.param .u64 out) {\n.reg .b16 h<9>; .reg .b32 r<9>; .reg .b64 d<9>; .reg .b64 a; .reg .pred p<9>;\n\
         .shared .align 16 .b8 s[2048];\ntable: .branchtargets L0, L1, L2, L3;\n\
         ld.param.u64 a, [out];\nmov.u32 r0, %tid.x;\nmul.lo.u32 r1, r0, 4;\ncvt.u64.u32 d1, r1;\nadd.u64 d0, a, d1;\nsetp.lt.u32 p1, r0, 7;\nsetp.gt.u32 p2, r0, 40;\n",
    );
    for label in 0..4 {
        text += &format!("L{label}:\n");
        for _ in 0..input.u8() % 12 {
            text += &instruction(&mut input);
        }
    }
    text += "ret;\n}\n";
    // The assembler does not accept every choice of operands.
    let Ok(module) = Module::load(text.as_bytes()) else {
        return;
    };
    let Ok(kernel) = module.kernel("k") else {
        return;
    };
    let device = Device::new(config());
    let loaded = device
        .load(&module)
        .expect("it has no variables to speak of");
    let out = device.allocate(4096).expect("it is below the quota");
    let launch = Launch {
        steps: 20_000,
        deadline: Some(Duration::from_secs(20)),
        ..Launch::new([2, 1, 1], [48, 1, 1])
    };
    match device.launch(&loaded, &kernel, &launch, &out.to_le_bytes()) {
        Ok(_) => device
            .read(out, &mut [0; 4096])
            .expect("nothing has happened to it"),
        Err(e) => {
            let known = [
                Code::IllegalAddress,
                Code::LaunchTimeout,
                Code::IllegalInstruction,
                Code::MisalignedAddress,
                Code::InvalidAddressSpace,
                Code::InvalidPc,
                Code::LaunchFailed,
            ];
            assert!(known.contains(&e.code), "{e}\n{text}");
            assert!(e.text.contains("kernel 'k'"), "{e}");
            assert_eq!(device.allocate(1).expect_err("a fault stays").code, e.code);
        }
    }
}

/// Each form once, alone.
pub(crate) fn kernel_seeds() -> Vec<Vec<u8>> {
    (0..FORMS.len())
        .step_by(3)
        .map(|k| {
            let mut seed = vec![3];
            for n in 0..3 {
                let form = u16::try_from((k + n) % FORMS.len()).unwrap_or(0);
                seed.extend(form.to_le_bytes());
                seed.extend([n.to_le_bytes()[0], 0, 5]);
                seed.extend([1, 2, 3, 4, 0, 1, 2, 3, 4, 5]);
            }
            seed
        })
        .collect()
}
