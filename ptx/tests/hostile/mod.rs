//! Kernels that never end, each busy in another way; for the test and the example about stopping
//! them.

/// A kernel that never ends.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) text: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) cooperative: bool,
    /// Bytes of the buffer passed to it.
    pub(crate) buffer: u64,
    /// Most rounds of its first thread between two readings of the clock: some hundred
    /// microseconds. 0: it does not count them.
    pub(crate) rounds: u32,
}

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// Buffer sizes: of most kernels, and of those that access pages for the first time.
const SMALL: u64 = 64 << 20;
const LARGE: u64 = 1 << 30;

/// The beginning of every kernel: `%a` is the buffer, `%t` the thread, `%q` whether it is the very
/// first one, which counts the rounds in the buffer's first word.
const OPEN: &str = ".visible .entry k(.param .u64 p) {
.reg .b64 %a, %b, %d<9>; .reg .b32 %t, %n, %w, %r<12>; .reg .b16 %h<4>; .reg .f32 %f<9>; .reg .f64 %g<9>; .reg .pred %q, %s, %z;
ld.param.u64 %a, [p];
mov.u32 %t, %tid.x;
mov.u32 %w, %ctaid.x;
or.b32 %r1, %t, %w;
setp.eq.u32 %q, %r1, 0;
mov.u32 %n, 0;
mov.u32 %r2, 1;
mov.f32 %f1, 0f3F800001;
mov.f64 %g1, 0d3FF0000000000001;
mul.wide.u32 %b, %t, 4;
add.s64 %b, %a, %b;
";

/// An endless loop around `body`; `before` is placed before the kernel, `start` before the loop.
fn endless(name: &'static str, before: &str, start: &str, body: &str) -> Kind {
    let text = format!(
        "{HEAD}{before}\n{OPEN}{start}\nL:\nadd.u32 %n, %n, 1;\n@%q st.global.u32 [%a], %n;\n{body}\nbra L;\n}}\n"
    );
    Kind {
        name,
        text,
        grid: [4, 1, 1],
        block: [256, 1, 1],
        shared: 0,
        cooperative: false,
        buffer: SMALL,
        rounds: 0,
    }
}

/// A function of the environment, called with two registers of 64 bits, or one.
fn call(function: &str, arguments: usize, result: u32) -> String {
    let params: Vec<String> = (0..arguments).map(|k| format!("x{k}")).collect();
    let declare: String = params
        .iter()
        .map(|p| format!(".param .b64 {p}; "))
        .collect();
    let set: String = (0..arguments)
        .map(|k| format!("st.param.b64 [x{k}], %d{};", k + 1))
        .collect();
    let (open, back) = match result {
        0 => (String::new(), String::new()),
        n => (
            format!(".param .b{n} y; "),
            format!(
                "ld.param.b{n} {}, [y];",
                if n == 64 { "%d5" } else { "%r5" }
            ),
        ),
    };
    let to = if result == 0 { "" } else { "(y), " };
    format!(
        "{{ {open}{declare}{set} call {to}{function}, ({}); {back} }}",
        params.join(", ")
    )
}

/// A random address in a large buffer, in `%d1`: different for each thread and round.
const ANYWHERE: &str = "mad.lo.u32 %r3, %r3, 1664525, 1013904223;
add.u32 %r3, %r3, %t;
shr.u32 %r4, %r3, 2;
and.b32 %r4, %r4, 0x3ffffff0;
cvt.u64.u32 %d1, %r4;
add.u64 %d1, %d1, %a;";

/// An access at random addresses of a large buffer.
fn anywhere(name: &'static str, start: &str, access: &str) -> Kind {
    let start =
        format!("mad.lo.u32 %r3, %w, 40503, %t;\nmul.lo.u32 %r3, %r3, 0x9E3779B1;\n{start}");
    let mut kind = endless(name, "", &start, &format!("{ANYWHERE}\n{access}"));
    kind.buffer = LARGE;
    kind
}

const PRINTF: &str = ".extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 v);";

/// A format with `count` conversions of a kind, and their argument: a text of 16,000 bytes.
fn formats(conversion: &str, count: usize) -> String {
    let mut bytes: Vec<String> = conversion
        .repeat(count)
        .bytes()
        .map(|b| b.to_string())
        .collect();
    bytes.push("0".into());
    let long = vec!["120"; 16_000].join(", ");
    format!(
        "{PRINTF}\n.global .align 8 .b8 form[] = {{ {} }};\n.global .align 8 .b8 long[] = {{ {long}, 0 }};\n\
         .global .align 8 .u64 args[{}] = {{ {} }};",
        bytes.join(", "),
        count.max(1),
        vec!["generic(long)"; count.max(1)].join(", ")
    )
}

/// `count` instructions, each on another register.
fn many(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(|k| line(k) + "\n").collect()
}

/// All of them.
pub(crate) fn kinds() -> Vec<Kind> {
    let mut all = vec![
        endless(
            "arithmetic",
            "",
            "",
            "mad.lo.u32 %r3, %r3, %n, %t;\nxor.b32 %r4, %r3, %r4;",
        ),
        endless(
            "float arithmetic",
            "",
            "",
            "fma.rn.f32 %f2, %f1, %f2, %f1;\nfma.rn.f64 %g2, %g1, %g2, %g1;",
        ),
        endless(
            "division",
            "",
            "",
            "or.b32 %r4, %n, 1;\ndiv.s32 %r3, %n, %r4;\ncvt.u64.u32 %d1, %r4;\ndiv.u64 %d2, %a, %d1;\nrem.u64 %d3, %a, %d1;",
        ),
        endless(
            "directed rounding",
            "",
            "",
            "fma.rp.f64 %g2, %g1, %g2, %g1;\ndiv.rm.f64 %g3, %g2, %g1;\nsqrt.rz.f64 %g4, %g3;\nfma.rz.f32 %f2, %f1, %f2, %f1;",
        ),
        endless(
            "approximations",
            "",
            "",
            "sin.approx.f32 %f2, %f1;\nex2.approx.f32 %f3, %f2;\nlg2.approx.f32 %f4, %f3;\ntanh.approx.f32 %f5, %f4;\nrcp.approx.ftz.f64 %g2, %g1;",
        ),
        endless(
            "carry chains",
            "",
            "",
            "mad.lo.cc.u64 %d1, %a, %b, %d1;\nmadc.hi.cc.u64 %d2, %a, %b, %d2;\naddc.u64 %d3, %d3, %a;",
        ),
        endless(
            "rows of memory",
            "",
            "",
            "ld.global.u32 %r3, [%b+4096];\nst.global.u32 [%b+8192], %r3;",
        ),
        endless(
            "scattered memory",
            "",
            "",
            "mad.lo.u32 %r3, %r3, 1664525, 1013904223;\nxor.b32 %r3, %r3, %t;\nand.b32 %r4, %r3, 0x3fffff0;\ncvt.u64.u32 %d1, %r4;\nadd.u64 %d1, %d1, %a;\nld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d1];\nst.global.u8 [%d1+9], %r5;",
        ),
        endless(
            "generic local memory",
            "",
            ".local .align 8 .b8 depot[4096];\nmov.u64 %d1, depot;\ncvta.local.u64 %d1, %d1;\nand.b32 %r3, %t, 31;\nmul.wide.u32 %d2, %r3, 8;\nadd.u64 %d1, %d1, %d2;",
            "ld.u64 %d3, [%d1];\nst.u64 [%d1+512], %d3;\nst.u8 [%d1+1024], %d3;",
        ),
        endless(
            "atomics of all on one word",
            "",
            "",
            "atom.global.add.u32 %r3, [%a+64], 1;\nred.global.add.f32 [%a+128], %f1;\nred.global.add.f64 [%a+192], %g1;",
        ),
        endless(
            "exchanges that fail",
            "",
            "",
            "atom.global.cas.b64 %d1, [%a+64], %d1, %b;\natom.global.cas.b16 %h1, [%a+128], %h1, %h2;",
        ),
        endless(
            "lanes apart",
            "",
            "",
            "and.b32 %r3, %t, 31;\nadd.u32 %r3, %r3, 1;\nM: sub.u32 %r3, %r3, 1;\nsetp.ne.u32 %s, %r3, 0;\n@%s bra M;",
        ),
        endless(
            "branches by index",
            "",
            ".reg .b32 i;\nand.b32 i, %t, 3;\ntable: .branchtargets A, B, C, D;",
            "brx.idx i, table;\nA: add.u32 %r3, %r3, 1;\nbra E;\nB: add.u32 %r3, %r3, 2;\nbra E;\nC: add.u32 %r3, %r3, 3;\nbra E;\nD: add.u32 %r3, %r3, 4;\nE:",
        ),
        endless(
            "shuffles and votes",
            "",
            "",
            "shfl.sync.bfly.b32 %r3, %n, 1, 31, -1;\nvote.sync.ballot.b32 %r4, %q, -1;\nmatch.any.sync.b32 %r5, %n, -1;\nredux.sync.add.u32 %r6, %t, -1;",
        ),
        endless(
            "matrices",
            "",
            "",
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f2, %f3, %f4, %f5};",
        ),
        endless(
            "matrices of doubles",
            "",
            "",
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%g2, %g3}, {%g1}, {%g1}, {%g2, %g3};",
        ),
        endless(
            "fences and clocks",
            "",
            "",
            "fence.sc.sys;\nmov.u64 %d1, %clock64;\nmov.u64 %d2, %globaltimer;",
        ),
        endless("sleep", "", "", "nanosleep.u32 1000000;"),
        endless(
            "printf of little",
            &formats("%d", 1),
            "mov.u64 %d1, form;\nmov.u64 %d2, args;",
            &call("vprintf", 2, 32),
        ),
        endless(
            "printf of much",
            &formats("%s", 2),
            "mov.u64 %d1, form;\nmov.u64 %d2, args;",
            &call("vprintf", 2, 32),
        ),
        endless(
            "printf that reads and writes nothing",
            &formats("%.0s", 3900),
            "mov.u64 %d1, form;\nmov.u64 %d2, args;",
            &call("vprintf", 2, 32),
        ),
        endless(
            "printf of wide fields",
            &formats("%4096d", 8),
            "mov.u64 %d1, form;\nmov.u64 %d2, args;",
            &call("vprintf", 2, 32),
        ),
        endless(
            "malloc and free",
            ".extern .func (.param .b64 r) malloc (.param .b64 n);\n.extern .func free (.param .b64 p);",
            "",
            &format!(
                "and.b32 %r3, %n, 127;\nadd.u32 %r3, %r3, 1;\ncvt.u64.u32 %d1, %r3;\n{}\nmov.u64 %d1, %d5;\n{}",
                call("malloc", 1, 64),
                call("free", 1, 0)
            ),
        ),
        endless(
            "malloc without free",
            ".extern .func (.param .b64 r) malloc (.param .b64 n);",
            "mov.u64 %d1, 16;",
            &call("malloc", 1, 64),
        ),
        endless(
            "calls with 30,000 bytes",
            ".func big(.param .b8 x[30000]) { ret; }",
            ".local .b8 depot[16];",
            "{ .param .b8 y[30000]; st.param.b32 [y], %n; call big, (y); }",
        ),
        endless(
            "calls of a function with many registers",
            &format!(
                ".func big {{ .reg .b64 %x<30000>; {} ret; }}",
                many(3, |k| format!("mov.u64 %x{}, 1;", 29_999 - k))
                    + &many(29_000, |k| format!("mov.u64 %x{k}, 1;"))
            ),
            "",
            "call big;",
        ),
        endless(
            "calls of a function with many constants",
            &format!(
                ".func big(.param .b32 x) {{ .reg .b32 %x; .reg .pred %z; ld.param.u32 %x, [x]; setp.ne.u32 %z, %x, -1; @%z ret; {} ret; }}",
                many(20_000, |k| format!("add.u32 %x, %x, {};", k + 100_000))
            ),
            "",
            "{ .param .b32 y; st.param.b32 [y], %n; call big, (y); }",
        ),
        endless(
            "recursion",
            ".func deep(.param .b32 x) { .reg .b32 %x; .reg .pred %z; ld.param.u32 %x, [x]; setp.eq.u32 %z, %x, 0; @%z ret; sub.u32 %x, %x, 1; { .param .b32 y; st.param.b32 [y], %x; call deep, (y); } ret; }",
            "",
            "{ .param .b32 y; st.param.b32 [y], 60; call deep, (y); }",
        ),
        endless(
            "recursion of lanes apart",
            ".func deep(.param .b32 x) { .reg .b32 %x; .reg .pred %z; ld.param.u32 %x, [x]; setp.eq.u32 %z, %x, 0; @%z ret; sub.u32 %x, %x, 1; { .param .b32 y; st.param.b32 [y], %x; call deep, (y); } ret; }",
            "and.b32 %r3, %t, 31;",
            "{ .param .b32 y; st.param.b32 [y], %r3; call deep, (y); }",
        ),
        endless(
            "asynchronous copies",
            "",
            ".shared .align 16 .b8 s[16384];\nmov.u64 %d1, s;\nmul.wide.u32 %d2, %t, 16;\nadd.u64 %d1, %d1, %d2;\nadd.u64 %d2, %d2, %a;",
            "cp.async.cg.shared.global [%d1], [%d2], 16;",
        ),
    ];
    // Pages that the system has yet to allocate, one or several per access; and once all are there,
    // places that no cache holds.
    all.extend([
        anywhere("loads from anywhere", "", "ld.global.u32 %r5, [%d1];"),
        anywhere("wide loads from anywhere", "", "ld.global.u64 %d2, [%d1];"),
        anywhere(
            "vectors from anywhere",
            "",
            "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d1];",
        ),
        anywhere("stores to anywhere", "", "st.global.u32 [%d1], %r3;"),
        anywhere("generic stores to anywhere", "", "st.u8 [%d1+1], %r3;"),
        anywhere("atomics anywhere", "", "atom.global.add.u32 %r5, [%d1], 1;"),
        anywhere(
            "rows from anywhere",
            "",
            "shfl.sync.idx.b32 %r4, %r4, 0, 31, -1;\nand.b32 %r5, %t, 31;\nshl.b32 %r5, %r5, 2;\nand.b32 %r4, %r4, 0x3ffff000;\n\
             add.u32 %r4, %r4, %r5;\ncvt.u64.u32 %d1, %r4;\nadd.u64 %d1, %d1, %a;\n\
             ld.global.u32 %r5, [%d1];\nst.global.u32 [%d1+1024], %r3;",
        ),
        anywhere(
            "asynchronous copies from anywhere",
            ".shared .align 16 .b8 s[16384];\nmov.u64 %d3, s;\nmul.wide.u32 %d2, %t, 16;\nadd.u64 %d3, %d3, %d2;",
            "cp.async.cg.shared.global [%d3], [%d1], 16;",
        ),
        anywhere(
            "tiles from anywhere",
            "",
            "shfl.sync.idx.b32 %r4, %r4, 0, 31, -1;\nand.b32 %r4, %r4, 0x0ffffff0;\ncvt.u64.u32 %d1, %r4;\nadd.u64 %d1, %d1, %a;\n\
             mov.u32 %r5, 22000000;\n\
             wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%r1, %r2, %r4, %r6, %r7, %r8, %r9, %r10}, [%d1], %r5;",
        ),
    ]);
    // The arguments are pointers to distinct pages.
    let mut strings = endless(
        "printf of strings from anywhere",
        &formats("%.1s", 3900),
        "mov.u64 %d1, form;\nmov.u64 %d2, args;\nmov.u32 %r3, 0;\nmov.u64 %d3, %a;\nmov.u64 %d4, %d2;\n\
         F: st.u64 [%d4], %d3;\nadd.u64 %d4, %d4, 8;\nadd.u64 %d3, %d3, 266240;\nadd.u32 %r3, %r3, 1;\n\
         setp.lt.u32 %s, %r3, 3900;\n@%s bra F;",
        &call("vprintf", 2, 32),
    );
    strings.buffer = LARGE;
    // The stack of a thread doubles repeatedly.
    let stack = endless(
        "recursion with large frames",
        ".func deep(.param .b32 x, .param .b8 z[30000]) { .reg .b32 %x; .reg .pred %z; ld.param.u32 %x, [x]; setp.eq.u32 %z, %x, 0; @%z ret; sub.u32 %x, %x, 1; { .param .b32 y; .param .b8 u[30000]; st.param.b32 [y], %x; st.param.b32 [u], %x; call deep, (y, u); } ret; }",
        ".local .b8 depot[300000];",
        "{ .param .b32 y; .param .b8 u[30000]; st.param.b32 [y], 10; st.param.b32 [u], 1; call deep, (y, u); }",
    );
    all.extend([strings, stack]);
    let mut barriers = endless("barriers", "", "", "bar.sync 0;");
    barriers.block = [1024, 1, 1];
    let mut counted = endless(
        "barriers that count",
        "",
        "",
        "bar.red.popc.u32 %r3, 0, %q;",
    );
    counted.block = [1024, 1, 1];
    // The first block waits for one that does not exist.
    let mut waits = endless(
        "blocks that wait",
        "",
        "",
        "W: ld.volatile.global.u32 %r3, [%a+64];\nsetp.eq.u32 %s, %r3, 0;\n@%s bra W;",
    );
    waits.grid = [4096, 1, 1];
    let mut together = endless(
        "a whole grid that waits",
        "",
        "",
        "W: ld.volatile.global.u32 %r3, [%a+64];\nsetp.eq.u32 %s, %r3, 0;\n@%s bra W;",
    );
    (together.grid, together.block, together.cooperative) = ([2048, 1, 1], [1024, 1, 1], true);
    let mut local = endless(
        "much local memory",
        "",
        ".local .align 8 .b8 depot[500000];\n",
        "st.local.u32 [depot+499000], %n;",
    );
    local.block = [1024, 1, 1];
    let mut registers = endless(
        "many registers",
        "",
        &format!(
            ".reg .b64 %x<30000>;\n{}",
            many(29_000, |k| format!("mov.u64 %x{k}, 1;"))
        ),
        "",
    );
    registers.block = [1024, 1, 1];
    let mut cluster = endless(
        "clusters",
        "",
        "",
        "barrier.cluster.arrive;\nbarrier.cluster.wait;",
    );
    cluster.text = cluster
        .text
        .replace(".target sm_80", ".target sm_90")
        .replace(
            "(.param .u64 p) {",
            "(.param .u64 p) .reqnctapercluster 8, 1, 1 {",
        );
    (cluster.grid, cluster.block) = ([16, 1, 1], [512, 1, 1]);
    // Not endless, but long: no operation, two thousand million times.
    let empty = Kind {
        name: "blocks without end",
        text: format!("{HEAD}.visible .entry k(.param .u64 p) {{ ret; }}\n"),
        grid: [i32::MAX.cast_unsigned(), 1, 1],
        block: [1, 1, 1],
        shared: 0,
        cooperative: false,
        buffer: SMALL,
        rounds: 0,
    };
    let large = Kind {
        name: "large blocks without end",
        text: format!("{HEAD}.visible .entry k(.param .u64 p) {{ ret; }}\n"),
        grid: [i32::MAX.cast_unsigned(), 1, 1],
        block: [1024, 1, 1],
        shared: 48 << 10,
        cooperative: false,
        buffer: SMALL,
        rounds: 0,
    };
    all.extend([
        barriers, counted, waits, together, local, registers, cluster, empty, large,
    ]);
    for k in &mut all {
        // The most that a step does, with some margin: plain instructions, functions for each lane,
        // atomics, text.
        k.rounds = match k.name {
            "many registers" => 700,
            "arithmetic" | "float arithmetic" | "rows of memory" | "rows from anywhere" => 500,
            "generic local memory" | "much local memory" | "branches by index" => 200,
            "division" | "carry chains" | "scattered memory" | "shuffles and votes" => 90,
            "loads from anywhere" | "wide loads from anywhere" | "stores to anywhere" => 90,
            "generic stores to anywhere" | "vectors from anywhere" => 90,
            "approximations" | "matrices" | "matrices of doubles" | "asynchronous copies" => 50,
            "atomics anywhere" | "asynchronous copies from anywhere" => 25,
            "tiles from anywhere" => 25,
            "lanes apart" | "atomics of all on one word" | "exchanges that fail" => 25,
            "fences and clocks" | "barriers" | "barriers that count" => 25,
            "directed rounding" => 12,
            "blocks without end" | "large blocks without end" => 0,
            _ => 5,
        };
    }
    all
}
