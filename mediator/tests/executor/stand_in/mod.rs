//! The CUDA executor over a stand-in for NVIDIA's library.
//!
//! `libcuda.rs` is compiled to a `libcuda.so` whose device is `vgpu-ptx`'s. The library path
//! counts from a process's start only, so each test runs itself once more in a process that finds
//! the stand-in, and that is told by [`SCENARIO`] what shall go wrong.

mod library;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vgpu_mediator::executor::{Executor, ExecutorChoice, ExecutorError, cuda, probe};
use vgpu_mediator::policy::Share;
use vgpu_mediator::session::OpenError;
use vgpu_mediator::session::backend::Backend;
use vgpu_protocol::op::{
    Body, MemoryAllocateRows, MemoryAllocateRowsReply, MemoryFree, MemoryInfo, MemoryInfoReply,
    Synchronize,
};
use vgpu_protocol::status::{ErrorCode, Status};

pub(crate) use library::{SCENARIO, library};
use library::{compile, compile_to};

use crate::{conformance, graphs, regions};

/// The folder of the stand-in for NVIDIA's management library.
pub(crate) fn management_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| compile_to("nvml", "libnvidia_ml.rs", "libnvidia-ml.so.1", &[]))
}

/// Whether this is the inner process, in which `test` shall do its work. In the outer one it starts
/// the inner one and checks that it succeeds.
fn inner(test: &str, scenario: &str) -> bool {
    inner_leaving(test, scenario, "0 objects left")
}

/// The same for one after which so much is left on the device when it is closed.
fn inner_leaving(test: &str, scenario: &str, left: &str) -> bool {
    if env::var_os(SCENARIO).is_some() {
        return true;
    }
    static LACKING: OnceLock<PathBuf> = OnceLock::new();
    let folder = if scenario == "lacking" {
        LACKING.get_or_init(|| compile("lacking", &["--cfg", "lacking"]))
    } else {
        library()
    };
    let output = run_self(test, scenario, folder);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scenario}: {output:?}\n{text}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{output:?}"
    );
    // The device is closed with everything freed, or was given up as it stood.
    assert!(
        text.contains(left) || (left.starts_with('0') && !text.contains("objects left")),
        "{text}"
    );
    assert!(!text.contains("stand-in: misuse"), "{text}");
    false
}

fn run_self(test: &str, scenario: &str, folder: &Path) -> Output {
    Command::new(env::current_exe().expect("this test"))
        .args([
            "--exact",
            &format!("stand_in::{test}"),
            "--nocapture",
            "--test-threads=1",
        ])
        .env(SCENARIO, scenario)
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .expect("the test runs itself")
}

fn open() -> cuda::CudaExecutor {
    cuda::open("a test", None).expect("the stand-in works")
}

/// The error of opening.
fn refused() -> String {
    let error = cuda::open("a test", None).expect_err("does not open");
    assert!(
        matches!(error, ExecutorError::Unavailable { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1);
    text
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn conforms() {
    if inner("conforms", "works") {
        let mut executor = open();
        assert_eq!(executor.info().device, "Stand-in GPU");
        assert!(
            executor.info().driver.contains("CUDA 12.4"),
            "{}",
            executor.info().driver
        );
        conformance::run(&mut executor);
    }
}

#[test]
fn regions_are_page_locked_and_let_go() {
    if inner("regions_are_page_locked_and_let_go", "works") {
        for run in crate::REGIONS {
            run(&mut open());
        }
    }
}

#[test]
fn a_device_writes_words_in_halves_where_it_cannot_write_them_whole() {
    if inner(
        "a_device_writes_words_in_halves_where_it_cannot_write_them_whole",
        "halves=1",
    ) {
        regions::copies(&mut open());
    }
}

#[test]
fn memory_that_the_driver_cannot_lock_is_no_region() {
    // CUDA_ERROR_NOT_SUPPORTED
    if inner(
        "memory_that_the_driver_cannot_lock_is_no_region",
        "register=801",
    ) {
        let mut executor = open();
        regions::not_lockable(&mut executor, Status::Cuda(801));
        conformance::add(&mut executor, 100);
    }
}

#[test]
fn auto_takes_what_works() {
    if inner("auto_takes_what_works", "works") {
        let executor = probe(ExecutorChoice::Auto, None).expect("auto finds one");
        assert_eq!(executor.info().kind, "cuda");
        assert!(
            executor.info().reason.contains("trial kernel"),
            "{:?}",
            executor.info()
        );
    }
}

#[test]
fn auto_falls_back_and_says_why() {
    if inner("auto_falls_back_and_says_why", "init=100") {
        let executor = probe(ExecutorChoice::Auto, None).expect("auto finds one");
        assert_eq!(executor.info().kind, "cpu");
        let reason = &executor.info().reason;
        assert!(
            reason.contains("CUDA_ERROR_100") && reason.contains("nvidia-smi"),
            "{reason}"
        );
        let error = probe(ExecutorChoice::Cuda, None)
            .err()
            .expect("cuda does not");
        assert!(
            error
                .to_string()
                .starts_with("executor cuda is not available"),
            "{error}"
        );
    }
}

#[test]
fn a_moving_executor_works_in_the_thread_it_moved_to() {
    if inner("a_moving_executor_works_in_the_thread_it_moved_to", "works") {
        let mut executor = open();
        conformance::add(&mut executor, 1000);
        let thread = std::thread::spawn(move || {
            conformance::add(&mut executor, 1000);
            executor
        });
        drop(thread.join().expect("no panic"));
    }
}

#[test]
fn the_toolkits_stub_is_recognised() {
    if inner("the_toolkits_stub_is_recognised", "init=34") {
        let error = refused();
        assert!(
            error.contains("CUDA error 34 in cuInit") && error.contains("stub"),
            "{error}"
        );
    }
}

/// Errors of the driver's start have a text in place of a number, and advice.
#[test]
fn errors_of_the_start_have_words_of_their_own() {
    let cases = [
        ("init=3", "the driver did not start", "dmesg"),
        ("init=34", "stub", "LD_LIBRARY_PATH"),
        ("init=36", "too old", "520"),
        ("init=101", "no GPU has the number", "CUDA_VISIBLE_DEVICES"),
        (
            "init=802",
            "fabric manager",
            "systemctl start nvidia-fabricmanager",
        ),
        ("init=803", "different versions", "reboot"),
        ("init=804", "forward compatibility", "cuda-compat"),
        (
            "init=805",
            "multi-process service",
            "nvidia-cuda-mps-control",
        ),
        (
            "context=101",
            "no GPU has the number",
            "CUDA_VISIBLE_DEVICES",
        ),
        ("context=304", "kernel refused", "/dev/nvidia*"),
        ("context=802", "fabric manager", "nvidia-smi -q"),
    ];
    let test = "errors_of_the_start_have_words_of_their_own";
    match env::var(SCENARIO) {
        Err(_) => {
            for (scenario, _, _) in cases {
                inner(test, scenario);
            }
        }
        Ok(scenario) => {
            let (_, cause, advice) = cases
                .into_iter()
                .find(|(case, _, _)| *case == scenario)
                .expect("one of them");
            let error = refused();
            let (_, code) = scenario.split_once('=').expect("a code");
            assert!(error.contains(&format!("CUDA error {code} in ")), "{error}");
            assert!(error.contains(cause) && error.contains(advice), "{error}");
        }
    }
}

/// In the compute mode Exclusive_Process one process has the GPU.
#[test]
fn a_gpu_that_others_have_is_busy() {
    for (scenario, cause) in [
        ("context=46", "for itself"),
        ("context=2", "no memory left"),
    ] {
        if inner("a_gpu_that_others_have_is_busy", scenario) {
            if env::var(SCENARIO).is_ok_and(|played| played != scenario) {
                continue;
            }
            let error = cuda::open("a test", None).expect_err("does not open");
            assert!(matches!(error, ExecutorError::Busy { .. }), "{error:?}");
            assert!(error.to_string().contains(cause), "{error}");
            let error = OpenError::from(probe(ExecutorChoice::Cuda, None).err().expect("busy"));
            assert_eq!(error.code, ErrorCode::Busy);
        }
    }
}

#[test]
fn no_device_is_explained() {
    if inner("no_device_is_explained", "devices=0") {
        let error = refused();
        assert!(
            error.contains("cuDeviceGetCount") && error.contains("xen-pciback"),
            "{error}"
        );
    }
}

#[test]
fn a_driver_that_cannot_allocate_is_not_offered() {
    if inner("a_driver_that_cannot_allocate_is_not_offered", "alloc=801") {
        let error = refused();
        assert!(error.contains("CUDA error 801 in cuMemAlloc"), "{error}");
    }
}

#[test]
fn a_driver_too_old_for_the_kernel_is_not_offered() {
    if inner(
        "a_driver_too_old_for_the_kernel_is_not_offered",
        "module=222",
    ) {
        let error = refused();
        assert!(
            error.contains("CUDA error 222 in cuModuleLoadData"),
            "{error}"
        );
        assert!(error.contains("520"), "{error}");
    }
}

#[test]
fn a_device_that_adds_wrongly_is_not_offered() {
    if inner("a_device_that_adds_wrongly_is_not_offered", "wrong=1") {
        assert!(refused().contains("1000 of 1000 numbers wrongly"));
    }
}

#[test]
fn a_missing_function_is_an_error_not_a_panic() {
    if inner("a_missing_function_is_an_error_not_a_panic", "lacking") {
        let error = refused();
        assert!(
            error.contains("lacks the function cuStreamQuery"),
            "{error}"
        );
    }
}

/// Requests that fit succeed, larger ones are refused.
#[test]
fn too_little_memory_is_reported_and_survived() {
    if inner(
        "too_little_memory_is_reported_and_survived",
        "limit=1000000",
    ) {
        let mut executor = open();
        let failure = conformance::failure(&mut executor, conformance::CHUNK, soon());
        assert_eq!(failure.status, Status::Cuda(2));
        assert!(failure.text.contains("cuMemAlloc"), "{}", failure.text);
        conformance::add(&mut executor, conformance::CHUNK / 2);
    }
}

/// The quota counts what is expected before the driver is asked, and then what the driver has taken.
#[test]
fn a_pitch_beyond_what_was_expected_counts_and_is_given_back_where_it_does_not_fit() {
    let test = "a_pitch_beyond_what_was_expected_counts_and_is_given_back_where_it_does_not_fit";
    if inner(test, "pitch=4096") {
        let mut executor = open();
        executor.set_share(Share {
            memory_mib: Some(1),
            ..Share::default()
        });
        let rows = |height: u64| MemoryAllocateRows {
            width: 100.try_into().expect("not 0"),
            height: height.try_into().expect("not 0"),
            element_bytes: 4,
        };
        let free = |executor: &mut cuda::CudaExecutor| {
            conformance::ask(executor, Synchronize {}).expect("sound");
            let body = conformance::ask(executor, MemoryInfo {}).expect("told");
            MemoryInfoReply::decode(&body).expect("a reply").free
        };
        let refused = conformance::ask(&mut executor, rows(1000));
        let failure = refused.expect_err("too much").expect("an end");
        assert_eq!(failure.status, ErrorCode::QuotaMemory.into());
        assert_eq!(free(&mut executor), 1 << 20);
        let body = conformance::ask(&mut executor, rows(200)).expect("fits");
        let reply = MemoryAllocateRowsReply::decode(&body).expect("a reply");
        assert_eq!(reply.pitch, 4096);
        assert_eq!(free(&mut executor), (1 << 20) - 200 * 4096);
        let address = reply.address;
        conformance::ask(&mut executor, MemoryFree { address }).expect("freed");
        assert_eq!(free(&mut executor), 1 << 20);
    }
}

/// The first launch is the proof's, so the third is the second request's.
#[test]
fn a_refused_launch_leaves_the_session_usable() {
    if inner("a_refused_launch_leaves_the_session_usable", "refuse=3") {
        let mut executor = open();
        conformance::add(&mut executor, 100);
        let failure = conformance::failure(&mut executor, 100, soon());
        // 987 is in no version of CUDA: codes of drivers to come are passed on.
        assert_eq!(failure.status, Status::Cuda(987));
        assert!(failure.text.contains("cuLaunchKernel"), "{}", failure.text);
        conformance::add(&mut executor, 1000);
    }
}

/// The first launch is the proof's; the graph has the second and third in pieces, and the next two as a whole: no
/// call refuses one of those, which a kernel launched by itself would be.
#[test]
fn a_graph_whose_kernels_are_short_is_launched_as_a_whole() {
    let test = "a_graph_whose_kernels_are_short_is_launched_as_a_whole";
    if inner(test, "refuse=4,quick=1") {
        let mut executor = open();
        let mut graph = graphs::Twice::new(&mut executor, 100);
        for _ in 0..5 {
            graph.launch(&mut executor).expect("launched");
        }
        graph.end(&mut executor);
    }
}

/// Two events for each launch would be twice as many as there are.
#[test]
fn of_short_kernels_that_are_waited_for_a_few_are_timed_and_all_are_counted() {
    let test = "of_short_kernels_that_are_waited_for_a_few_are_timed_and_all_are_counted";
    // Nearly as many: where this machine is busy, a kernel may seem to be a long one, and the next is timed.
    if inner(test, "events=780,quick=1") {
        let mut executor = open();
        let told = conformance::launches(&mut executor, 400);
        assert_eq!(told, [1000; 400]);
    }
}

#[test]
fn a_graph_whose_kernels_are_long_is_launched_in_pieces() {
    let test = "a_graph_whose_kernels_are_long_is_launched_in_pieces";
    if inner(test, "refuse=4") {
        let mut executor = open();
        let mut graph = graphs::Twice::new(&mut executor, 4_000_000);
        graph.launch(&mut executor).expect("launched");
        let failure = graph.launch(&mut executor).expect_err("refused");
        let failure = failure.expect("an end");
        assert_eq!(failure.status, Status::Cuda(987), "{}", failure.text);
        assert!(failure.text.contains("cuLaunchKernel"), "{}", failure.text);
        graph.end(&mut executor);
    }
}

#[test]
fn a_fault_in_a_graph_launched_as_a_whole_is_that_of_the_launch() {
    let test = "a_fault_in_a_graph_launched_as_a_whole_is_that_of_the_launch";
    if inner(test, "fault=5,quick=1") {
        let mut executor = open();
        let mut graph = graphs::Twice::new(&mut executor, 100);
        graph.launch(&mut executor).expect("launched");
        let failure = graph.launch(&mut executor).expect_err("a fault");
        let failure = failure.expect("an end");
        assert_eq!(failure.status, Status::Cuda(700), "{}", failure.text);
        assert!(failure.text.contains("GraphLaunch"), "{}", failure.text);
    }
}

#[test]
fn a_graph_launched_as_a_whole_ends_at_its_deadline() {
    let test = "a_graph_launched_as_a_whole_ends_at_its_deadline";
    if inner(test, "hang=5,quick=1") {
        let mut executor = open();
        executor.set_share(Share {
            kernel_timeout_s: Some(1),
            ..Share::default()
        });
        let mut graph = graphs::Twice::new(&mut executor, 100);
        graph.launch(&mut executor).expect("launched");
        let failure = graph.launch(&mut executor).expect_err("no end");
        let failure = failure.expect("an end");
        assert_eq!(failure.status, Status::Cuda(702), "{}", failure.text);
        assert!(failure.text.contains("GraphLaunch"), "{}", failure.text);
    }
}

#[test]
fn a_fault_ends_the_context_and_nothing_hangs() {
    if inner("a_fault_ends_the_context_and_nothing_hangs", "fault=2") {
        let mut executor = open();
        for _ in 0..2 {
            let failure = conformance::failure(&mut executor, 100, soon());
            assert_eq!(failure.status, Status::Cuda(700), "{}", failure.text);
        }
    }
}

#[test]
fn a_hung_device_cannot_hold_a_request_or_a_drop() {
    if inner("a_hung_device_cannot_hold_a_request_or_a_drop", "hang=2") {
        let mut executor = open();
        executor.set_share(Share {
            kernel_timeout_s: Some(1),
            ..Share::default()
        });
        let deadline = Instant::now() + Duration::from_millis(50);
        let ended = conformance::run_adds(&mut executor, &[vec![(1.0, 2.0); 100]], deadline);
        assert_eq!(ended, Err(None));
        // The work is still under way when the request is given up: its kernel's time ends, and with it the
        // device's.
        executor.cancel(1);
        let failure = conformance::failure(&mut executor, 100, soon());
        let over = [Status::Cuda(702), ErrorCode::BackendLost.into()];
        assert!(over.contains(&failure.status), "{failure:?}");
        drop(executor);
    }
}

/// The process rests for longer than a device gets to end work that nobody wants any more: the device
/// has ended it by then.
#[test]
fn a_device_is_asked_once_more_before_it_counts_as_lost() {
    // Its module goes with the context, which one that counts as lost would never give back.
    if inner_leaving(
        "a_device_is_asked_once_more_before_it_counts_as_lost",
        "rest=2",
        "1 objects left",
    ) {
        let mut executor = open();
        conformance::begin_a_launch(&mut executor);
        drop(executor);
    }
}

#[test]
fn a_device_that_hangs_in_the_proof_is_not_offered() {
    if inner("a_device_that_hangs_in_the_proof_is_not_offered", "hang=1") {
        assert!(refused().contains("trial kernel failed: CopyFromDevice was not done in time"));
    }
}
