//! Modules that do not load, impossible launches, and kernels that fail: `golden/errors.txt`.

use vgpu_ptx::{Code, Config, Device, Error, Kernel, Launch, Loaded, Module};

use crate::{corpus, corpus_text, device};

const HEAD: &str = ".version 8.0\n.target sm_75\n.address_size 64\n";

/// A kernel with these instructions.
fn with(body: &str) -> String {
    format!(
        ".visible .entry k(.param .u64 p) {{ .reg .b64 a; .reg .b32 x; ld.param.u64 a, [p]; {body} ret; }}\n"
    )
}

/// The text of each module in the list; the one with this name.
fn image(name: &str) -> Vec<u8> {
    let headed = |b: &str| format!("{HEAD}{}", with(b));
    match name {
        "good" => headed(""),
        "empty" => String::new(),
        "garbage" => "this is no PTX\n".into(),
        "no version" => format!(".target sm_75\n.address_size 64\n{}", with("")),
        "no target" => format!(".version 8.0\n.address_size 64\n{}", with("")),
        "version of the future" => format!(
            ".version 9.9\n.target sm_75\n.address_size 64\n{}",
            with("")
        ),
        "target above the device" => format!(
            ".version 9.0\n.target sm_120\n.address_size 64\n{}",
            with("")
        ),
        "target below what the version knows" => format!(
            ".version 8.0\n.target sm_20\n.address_size 64\n{}",
            with("")
        ),
        "arch-specific target of another device" => format!(
            ".version 9.0\n.target sm_100a\n.address_size 64\n{}",
            with("")
        ),
        "address size 32" => format!(
            ".version 8.0\n.target sm_75\n.address_size 32\n{}",
            with("")
        ),
        "unknown instruction" => headed("frobnicate.u32 x, x;"),
        "instruction newer than target" => headed("redux.sync.add.s32 x, x, -1;"),
        "instruction newer than version" => format!(
            ".version 6.3\n.target sm_75\n.address_size 64\n{}",
            with("redux.sync.add.s32 x, x, -1;")
        ),
        "bad type suffix" => headed("add.u7 x, x, x;"),
        "wrong width of register" => headed("add.u32 x, a, x;"),
        "undeclared register" => headed("mov.u32 y, x;"),
        "undefined label" => headed("bra NOWHERE;"),
        "undeclared function" => headed("call nobody;"),
        "extern function missing" => {
            format!("{HEAD}.extern .func nobody;\n{}", with("call nobody;"))
        }
        "extern variable missing" => format!(
            "{HEAD}.extern .global .u32 v;\n{}",
            with("ld.global.u32 x, [v];")
        ),
        "same kernel twice" => format!("{HEAD}{}{}", with(""), with("")),
        "missing semicolon" => headed("mov.u32 x, 1"),
        "cut off" => {
            let t = headed("");
            t[..t.len() - 8].into()
        }
        "too much static shared memory" => {
            format!("{HEAD}.shared .b8 s[300000];\n{}", with("mov.u64 a, s;"))
        }
        "49 KiB static shared memory" => format!(
            "{HEAD}.shared .b8 s[50000];\n{}",
            with("mov.u64 a, s; st.u32 [a], x;")
        ),
        "too many parameters" => format!("{HEAD}.visible .entry k(.param .b8 p[40000]) {{ ret; }}"),
        "nul inside" => headed("") + "\0 junk",
        "elf header only" => return [b"\x7fELF\x02\x01\x01".to_vec(), vec![0; 64]].concat(),
        "fatbin magic only" => return [b"\x50\xed\x55\xba".to_vec(), vec![0; 64]].concat(),
        _ => panic!("no module is called {name}"),
    }
    .into_bytes()
}

#[test]
fn modules_that_do_not_load_have_the_drivers_number_and_its_log() {
    let (mut n, mut wrong) = (0, Vec::new());
    for line in corpus_text("golden/errors.txt")
        .lines()
        .filter_map(|l| l.strip_prefix("module: "))
    {
        let (name, answer) = line
            .rsplit_once(": ")
            .filter(|(_, a)| a.starts_with(|c: char| c.is_ascii_digit()))
            .unwrap_or_else(|| {
                // The log contains colons itself.
                let at = line.find(": ").unwrap();
                (&line[..at], &line[at + 2..])
            });
        let (head, log) = answer.split_once(" |").unwrap_or((answer, ""));
        let code: u32 = head.split(' ').next().unwrap().parse().unwrap();
        n += 1;
        let got = Module::load(&image(name));
        match (&got, code) {
            (Ok(_), 0) => {}
            (Err(e), c) if e.code.number() == c => {
                let ours = e.text.replace('\n', " / ");
                // The list was cut at 300 characters.
                let want = log.trim();
                if !(ours == want || want.len() > 250 && ours.starts_with(want)) {
                    wrong.push(format!("{name}:\n  {ours}\n  {want}"));
                }
            }
            _ => wrong.push(format!("{name}: {got:?}, not {code}")),
        }
    }
    assert_eq!(n, 29);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

struct Ready {
    device: Device,
    loaded: Loaded,
    kernel: Kernel,
    out: u64,
}

fn ready(module: &[u8], kernel: &str) -> Ready {
    let module = Module::load(module).unwrap();
    let device = device();
    let loaded = device.load(&module).unwrap();
    let kernel = module.kernel(kernel).unwrap();
    let out = device.allocate(65536).unwrap();
    Ready {
        device,
        loaded,
        kernel,
        out,
    }
}

impl Ready {
    fn launch(&self, threads: u32, words: &[u64]) -> Result<(), Error> {
        let mut params = Vec::new();
        for (p, w) in self.kernel.parameters.iter().zip(words) {
            params.resize(p.offset as usize, 0);
            params.extend(&w.to_le_bytes()[..p.size as usize]);
        }
        let mut how = Launch::new([1; 3], [threads, 1, 1]);
        how.deadline = Some(std::time::Duration::from_millis(200));
        self.device
            .launch(&self.loaded, &self.kernel, &how, &params)
            .map(|_| ())
    }
}

#[test]
fn launches_that_cannot_be_are_refused_and_end_nothing() {
    let r = ready(&corpus("vector_add.ptx"), "vector_add");
    assert_eq!(
        r.loaded.module().kernel("nobody").unwrap_err().code,
        Code::NotFound
    );
    assert_eq!(
        r.loaded.variable("nobody").unwrap_err().code,
        Code::NotFound
    );
    let params = [
        r.out.to_le_bytes(),
        r.out.to_le_bytes(),
        r.out.to_le_bytes(),
        4u64.to_le_bytes(),
    ]
    .concat();
    let bad = [
        ([1, 1, 1], [1025, 1, 1], 0),
        ([1, 1, 1], [0, 1, 1], 0),
        ([0, 1, 1], [32, 1, 1], 0),
        ([1, 1, 1], [1, 1, 65], 0),
        ([1, 65536, 1], [32, 1, 1], 0),
        ([1, 1, 1], [32, 1, 1], 60000),
        ([1, 1, 1], [32, 1, 1], 300_000),
    ];
    for (grid, block, shared) in bad {
        let how = Launch {
            shared,
            ..Launch::new(grid, block)
        };
        assert_eq!(
            r.device
                .launch(&r.loaded, &r.kernel, &how, &params)
                .unwrap_err()
                .code,
            Code::InvalidValue,
            "{how:?}"
        );
    }
    assert_eq!(
        r.device
            .launch(&r.loaded, &r.kernel, &Launch::new([1; 3], [32, 1, 1]), &[])
            .unwrap_err()
            .code,
        Code::InvalidValue
    );
    let other = ready(&corpus("saxpy.ptx"), "saxpy");
    assert_eq!(
        r.device
            .launch(
                &r.loaded,
                &other.kernel,
                &Launch::new([1; 3], [32, 1, 1]),
                &params
            )
            .unwrap_err()
            .code,
        Code::InvalidHandle
    );
    r.device
        .launch(
            &r.loaded,
            &r.kernel,
            &Launch::new([1; 3], [32, 1, 1]),
            &params,
        )
        .unwrap();
}

#[test]
fn more_shared_memory_wants_consent() {
    let r = ready(&corpus("reduce.ptx"), "reduce_tree");
    let params = [r.out.to_le_bytes(), r.out.to_le_bytes(), 1u64.to_le_bytes()].concat();
    for (shared, opt_in, fine) in [
        (49152, false, true),
        (100_000, false, false),
        (100_000, true, true),
        (300_000, true, false),
    ] {
        let how = Launch {
            shared,
            shared_opt_in: opt_in,
            ..Launch::new([1; 3], [32, 1, 1])
        };
        assert_eq!(
            r.device.launch(&r.loaded, &r.kernel, &how, &params).is_ok(),
            fine,
            "{shared} {opt_in}"
        );
    }
}

/// The result of a kernel in the list: 0, or the number of the error.
fn said(name: &str) -> Option<u32> {
    let text = corpus_text("golden/errors.txt");
    let line = text
        .lines()
        .find(|l| {
            l.strip_prefix("fault: ")
                .and_then(|l| l.strip_prefix(name))
                .is_some_and(|l| l.starts_with(": "))
        })?
        .to_string();
    if line.contains("still running") {
        return Some(Code::LaunchTimeout.number());
    }
    let from = text.find(&line)?;
    let at = text[from..].find("synchronise ")? + from + "synchronise ".len();
    text[at..].split(' ').next()?.parse().ok()
}

#[test]
fn kernels_that_go_wrong_end_with_the_gpus_error_and_it_stays() {
    let mut wrong = Vec::new();
    let faults = [
        ("fault_read_null", 1, vec![0]),
        ("fault_write_far 34359738368", 1, vec![0, 34_359_738_368]),
        ("fault_misaligned", 1, vec![0, 0]),
        ("fault_misaligned_vector", 1, vec![0, 0]),
        ("fault_shared_range 40", 32, vec![0, 40]),
        ("fault_shared_range 20000", 32, vec![0, 20000]),
        ("fault_shared_misaligned", 32, vec![0, 1]),
        ("fault_trap", 1, vec![]),
        ("fault_stack 1", 1, vec![0, 1]),
        ("fault_stack 2", 1, vec![0, 2]),
        ("fault_stack 3", 1, vec![0, 3]),
        ("fault_stack 40", 1, vec![0, 40]),
        ("fault_stack 100000", 1, vec![0, 100_000]),
        ("fault_bad_call 4096", 1, vec![4096]),
        ("fault_barrier_split", 32, vec![0]),
        ("fault_endless", 1, vec![0]),
    ];
    for (name, threads, mut words) in faults {
        let kernel = name.split(' ').next().unwrap();
        let r = ready(&corpus("faults.ptx"), kernel);
        let pointers = if name.starts_with("fault_misaligned") {
            2
        } else {
            usize::from(kernel != "fault_bad_call")
        };
        for w in words.iter_mut().take(pointers) {
            *w = r.out;
        }
        let got = r.launch(threads, &words);
        let want = said(name).unwrap();
        let code = got.as_ref().err().map_or(0, |e| e.code.number());
        if code != want {
            wrong.push(format!("{name}: {got:?}, not {want}"));
        }
        if let Err(e) = got {
            let later = r.device.allocate(16).unwrap_err();
            assert_eq!(later.code, e.code, "{name}");
            if e.code != Code::LaunchTimeout {
                assert!(
                    e.text.contains(&format!("kernel '{kernel}'"))
                        && e.text.contains("line ")
                        && e.text.contains("block [0,0,0]"),
                    "{name}: {}",
                    e.text
                );
            }
        } else {
            r.device.allocate(16).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_gpu_does_not_notice_is_an_error_here() {
    for by in [200u64, 1_048_576, u64::MAX] {
        let r = ready(&corpus("faults.ptx"), "fault_write_far");
        let edge = r.device.allocate(800).unwrap();
        let e = r.launch(1, &[edge, by]).unwrap_err();
        assert_eq!(e.code, Code::IllegalAddress, "{by}");
    }
    // A GPU hangs here.
    let r = ready(&corpus("faults.ptx"), "fault_bad_call");
    assert_eq!(
        r.launch(1, &[0]).unwrap_err().code,
        Code::IllegalInstruction
    );
}

#[test]
fn a_breakpoint_and_freed_memory_are_faults() {
    let r = ready(format!("{HEAD}{}", with("brkpt;")).as_bytes(), "k");
    assert_eq!(
        r.launch(1, &[r.out]).unwrap_err().code.number(),
        said("brkpt").unwrap()
    );
    let r = ready(
        format!(
            "{HEAD}{}",
            with("ld.global.u32 x, [a]; st.global.u32 [a], x;")
        )
        .as_bytes(),
        "k",
    );
    r.device.free(r.out).unwrap();
    let e = r.launch(1, &[r.out]).unwrap_err();
    assert_eq!(e.code.number(), said("free_read").unwrap());
    assert!(e.text.contains("line 4"), "{}", e.text);
}

#[test]
fn assertions_and_printf_say_what_they_say_on_a_gpu() {
    let r = ready(&corpus("printf_assert.ptx"), "check");
    let bad: Vec<u8> = [1i32, 2, -3, 4]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let data = r.device.allocate(16).unwrap();
    r.device.write(data, &bad).unwrap();
    let e = r.launch(3, &[data, r.out, 3]).unwrap_err();
    assert_eq!(e.code, Code::Assert);
    let text = corpus_text("golden/errors.txt");
    let line = text
        .lines()
        .find(|l| l.contains("printf_assert:check"))
        .unwrap();
    assert!(
        line.ends_with(e.text.lines().next().unwrap()),
        "{}\n{line}",
        e.text
    );

    let r = ready(&corpus("printf_assert.ptx"), "give_up");
    let data = r.device.allocate(16).unwrap();
    r.device.write(data, &bad).unwrap();
    assert_eq!(
        r.launch(3, &[data]).unwrap_err().code.number(),
        said("printf_assert:give_up").unwrap()
    );

    let r = ready(&corpus("printf_assert.ptx"), "say");
    r.launch(3, &[3]).unwrap();
    let said = String::from_utf8(r.device.take_printed(usize::MAX).text).unwrap();
    let at = text.find("fault: printf_assert:say: ").unwrap() + "fault: printf_assert:say: ".len();
    let want = text[at..].split("launch 0").next().unwrap();
    assert_eq!(said.trim_end(), want.trim_end());
    assert!(!r.device.has_printed());
}

#[test]
fn printf_knows_every_form() {
    let form =
        "[%5d|%-5d|%05d|%+d|%x|%#X|%o|%c|%s|%10.3f|%e|%g|%a|%ld|%llu|%hd|%p|%%|%5s|%-5s|%.2s|%u]";
    let text: String = form.bytes().map(|b| format!("{b}, ")).collect::<String>() + "10, 0";
    let values: [(&str, &str); 21] = [
        ("s32", "42"),
        ("s32", "42"),
        ("s32", "42"),
        ("s32", "42"),
        ("s32", "254"),
        ("s32", "254"),
        ("s32", "8"),
        ("s32", "65"),
        ("ptr", "word"),
        ("f64", "0d400921FB54442D18"),
        ("f64", "0d400921FB54442D18"),
        ("f64", "0d3F1A36E2EB1C432D"),
        ("f64", "0d3FF8000000000000"),
        ("s64", "-5"),
        ("u64", "0xffffffffffffffff"),
        ("s32", "70000"),
        ("u64", "4660"),
        ("ptr", "word"),
        ("ptr", "word"),
        ("ptr", "word"),
        ("s32", "-1"),
    ];
    let (mut code, mut at) = (String::new(), 0u32);
    for (t, v) in values {
        at = if t == "s32" {
            at
        } else {
            at.next_multiple_of(8)
        };
        code += &match t {
            "ptr" => format!("cvta.global.u64 a, {v}; st.local.u64 [l+{at}], a; "),
            "f64" => format!("mov.f64 f, {v}; st.local.f64 [l+{at}], f; "),
            "s32" => format!("mov.s32 x, {v}; st.local.u32 [l+{at}], x; "),
            _ => format!("mov.{t} a, {v}; st.local.u64 [l+{at}], a; "),
        };
        at += if t == "s32" { 4 } else { 8 };
    }
    let source = format!(
        "{HEAD}.global .b8 form[] = {{ {text} }};\n.global .b8 word[] = {{ 104, 101, 121, 0 }};\n.extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 v);\n\
         .visible .entry k(.param .u64 p) {{ .local .align 8 .b8 d[256]; .reg .b64 a, l, g; .reg .b32 x; .reg .f64 f; mov.u64 l, d; cvta.local.u64 g, l; {code}\
         cvta.global.u64 a, form; {{ .param .b64 f0; .param .b64 v0; .param .b32 r0; st.param.b64 [f0], a; st.param.b64 [v0], g; call (r0), vprintf, (f0, v0); ld.param.b32 x, [r0]; }} \
         ld.param.u64 a, [p]; st.global.u32 [a], x; ret; }}"
    );
    let r = ready(source.as_bytes(), "k");
    r.launch(1, &[r.out]).unwrap();
    let said = String::from_utf8(r.device.take_printed(usize::MAX).text).unwrap();
    assert_eq!(
        said,
        "[   42|42   |00042|+42|fe|0XFE|10|A|hey|     3.142|3.141593e+00|0.0001|0x1.8p+0|-5|18446744073709551615|4464|0x1234|%|  hey|hey  |he|4294967295]\n"
    );
    let mut n = [0; 4];
    r.device.read(r.out, &mut n).unwrap();
    assert_eq!(u32::from_le_bytes(n), 21);
}

#[test]
fn a_kernel_that_never_ends_is_ended_by_budget_deadline_and_hand() {
    let start = |how: &dyn Fn(&mut Launch)| {
        let module = Module::load(&corpus("faults.ptx")).unwrap();
        let device = Device::new(Config {
            workers: 2,
            ..Config::default()
        });
        let loaded = device.load(&module).unwrap();
        let kernel = module.kernel("fault_endless").unwrap();
        let out = device.allocate(16).unwrap();
        let mut l = Launch::new([4, 1, 1], [64, 1, 1]);
        how(&mut l);
        device
            .launch(&loaded, &kernel, &l, &out.to_le_bytes())
            .unwrap_err()
    };
    let e = start(&|l| l.steps = 100_000);
    assert_eq!(e.code, Code::LaunchTimeout);
    assert!(
        e.text.contains("budget") && e.text.contains("0 of 4 blocks") && e.text.contains("line"),
        "{}",
        e.text
    );
    let e = start(&|l| l.deadline = Some(std::time::Duration::from_millis(5)));
    assert!(e.text.contains("deadline"), "{}", e.text);
    let e = start(&|l| {
        let c = l.cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            c.cancel();
        });
    });
    assert!(e.text.contains("cancelled"), "{}", e.text);
}

#[test]
fn threads_that_wait_for_each_other_for_ever_are_told_where_they_stand() {
    let r = ready(
        format!("{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 t; .reg .pred q; mov.u32 t, %tid.x; setp.ge.u32 q, t, 32;\n@q bra B;\nbar.sync 1;\nret;\nB:\nbar.sync 2;\nret; }}").as_bytes(),
        "k",
    );
    let e = r.launch(64, &[r.out]).unwrap_err();
    assert_eq!(e.code, Code::LaunchTimeout);
    assert!(
        e.text.contains("barrier 1") && e.text.contains("barrier 2") && e.text.contains("line 6"),
        "{}",
        e.text
    );
}
