//! Asynchronous work: streams, events, and the end of a device.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_ptx::{
    Cancel, Code, Config, Device, Done, Error, Event, Kernel, Launch, Loaded, Module, Report, Rows,
    Stream, Work,
};

/// Far beyond any normal time: detects a hang, does not measure.
const PATIENCE: Duration = Duration::from_secs(120);

const TEXT: &str = ".version 8.0
.target sm_80
.address_size 64
// Multiplies by 3 and adds 1, after so many turns of a loop.
.visible .entry step(.param .u64 p, .param .u32 turns) {
    .reg .b64 a; .reg .b32 v, n; .reg .pred q;
    ld.param.u64 a, [p];
    ld.param.u32 n, [turns];
L:  sub.u32 n, n, 1;
    setp.gt.s32 q, n, 0;
    @q bra L;
    ld.global.u32 v, [a];
    mad.lo.u32 v, v, 3, 1;
    st.global.u32 [a], v;
    ret;
}
.visible .entry endless(.param .u64 p) {
L:  bra L;
}
// Ends when the word is set.
.visible .entry waits(.param .u64 p) {
    .reg .b64 a; .reg .b32 v; .reg .pred q;
    ld.param.u64 a, [p];
L:  ld.volatile.global.u32 v, [a];
    setp.eq.u32 q, v, 0;
    @q bra L;
    ret;
}
.visible .entry wild(.param .u64 p) {
    .reg .b64 a; .reg .b32 v;
    mov.u64 a, 64;
    ld.global.u32 v, [a];
    ret;
}
// Counts itself, after a loop of so many turns.
.visible .entry counts(.param .u64 p, .param .u32 turns) {
    .reg .b64 a; .reg .b32 v, n; .reg .pred q;
    ld.param.u64 a, [p];
    ld.param.u32 n, [turns];
L:  sub.u32 n, n, 1;
    setp.gt.s32 q, n, 0;
    @q bra L;
    mov.u32 v, %tid.x;
    setp.eq.u32 q, v, 0;
    @q red.global.add.u32 [a], 1;
    ret;
}
";

struct On {
    device: Device,
    loaded: Loaded,
}

impl On {
    fn new(config: Config) -> Self {
        let device = Device::new(config);
        let loaded = device
            .load(&Module::load(TEXT.as_bytes()).unwrap())
            .unwrap();
        Self { device, loaded }
    }

    fn workers(workers: u32) -> Self {
        Self::new(Config {
            workers,
            ..Config::default()
        })
    }

    fn kernel(&self, name: &str) -> Kernel {
        self.loaded.module().kernel(name).unwrap()
    }

    fn launch(&self, kernel: &str, how: Launch, address: u64, turns: u32) -> Work {
        let mut parameters = address.to_le_bytes().to_vec();
        parameters.extend(turns.to_le_bytes());
        Work::Launch {
            loaded: self.loaded.clone(),
            kernel: self.kernel(kernel),
            how,
            parameters,
        }
    }
}

fn one() -> Launch {
    Launch::new([1; 3], [1; 3])
}

/// Submits work and returns the channel that receives its end.
fn submit(s: &Stream, work: Work) -> mpsc::Receiver<Done> {
    let (tell, told) = mpsc::channel();
    // The receiver may be gone.
    s.submit(work, move |d| drop(tell.send(d))).unwrap();
    told
}

fn wait(told: &mpsc::Receiver<Done>) -> Done {
    told.recv_timeout(PATIENCE).expect("it ends, and says so")
}

/// Waits until a stream has nothing left whose end is not reported: its last report may not have returned.
fn until_idle(s: &Stream) {
    let limit = Instant::now() + PATIENCE;
    while s.pending() > 0 {
        assert!(Instant::now() < limit, "{s:?}");
        thread::yield_now();
    }
}

#[test]
fn a_stream_is_busy_until_the_end_of_its_last_work_was_reported() {
    let on = On::workers(1);
    let s = on.device.stream();
    let (tell, told) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let report = move |_| {
        tell.send(()).unwrap();
        goes.recv_timeout(PATIENCE).unwrap();
    };
    s.submit(Work::Host(Box::new(|| Ok(()))), report).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(s.pending(), 1);
    go.send(()).unwrap();
    until_idle(&s);
}

#[test]
fn a_stream_does_its_work_in_order_whatever_it_is() {
    for workers in [1, 3] {
        let on = On::workers(workers);
        let (s, at) = (on.device.stream(), on.device.allocate(1 << 20).unwrap());
        let order = Arc::new(Mutex::new(Vec::new()));
        let (tell, told) = mpsc::channel();
        let mut all = Vec::new();
        all.push(Work::Write {
            to: at,
            data: 5u32.to_le_bytes().to_vec(),
        });
        for k in 0..20 {
            all.push(on.launch("step", one(), at, 1000 * (k % 3)));
        }
        all.push(Work::Copy {
            to: Rows::range(at + 1024, 4),
            from: Rows::range(at, 4),
        });
        all.push(Work::Fill {
            to: Rows::range(at, 4),
            value: 7,
            size: 2,
        });
        let (device, order2) = (on.device.clone(), Arc::clone(&order));
        all.push(Work::Host(Box::new(move || {
            let mut b = [0; 4];
            device.read(at + 1024, &mut b)?;
            order2.lock().unwrap().push(usize::MAX);
            device.write(at + 2048, &b)
        })));
        all.push(Work::Read {
            from: at,
            bytes: 4096,
        });
        let n = all.len();
        for (k, w) in all.into_iter().enumerate() {
            let (tell, order) = (tell.clone(), Arc::clone(&order));
            s.submit(w, move |d| {
                order.lock().unwrap().push(k);
                tell.send(d).unwrap();
            })
            .unwrap();
        }
        let done: Vec<Done> = (0..n)
            .map(|_| told.recv_timeout(PATIENCE).unwrap())
            .collect();
        let want = (0..20).fold(5u32, |v, _| v.wrapping_mul(3).wrapping_add(1));
        let word = |k: usize| u32::from_le_bytes(done[n - 1].data[k..k + 4].try_into().unwrap());
        assert_eq!([word(0), word(1024), word(2048)], [0x0007_0007, want, want]);
        assert_eq!(done[0].data, 5u32.to_le_bytes());
        let mut in_order: Vec<usize> = (0..n).collect();
        in_order.insert(n - 2, usize::MAX);
        assert_eq!(*order.lock().unwrap(), in_order);
        assert!(done.iter().all(|d| d.result.is_ok() && d.began <= d.ended));
        assert!(done.windows(2).all(|d| d[0].ended <= d[1].ended));
        until_idle(&s);
    }
}

#[test]
fn an_endless_kernel_holds_up_no_other_stream_even_with_one_thread() {
    let on = On::workers(1);
    let (a, b) = (on.device.stream(), on.device.stream());
    let at = on.device.allocate(4096).unwrap();
    let how = one();
    let cancel = how.cancel.clone();
    let endless = submit(&a, on.launch("endless", how, at, 0));
    // This one ends only through the other stream's work beside it.
    let c = on.device.stream();
    let waits = submit(&c, on.launch("waits", one(), at, 0));
    let steps = submit(&b, on.launch("step", one(), at + 512, 100_000));
    assert_eq!(wait(&steps).result.unwrap().blocks, 1);
    let written = submit(
        &b,
        Work::Write {
            to: at,
            data: vec![1; 4],
        },
    );
    wait(&written).result.unwrap();
    wait(&waits).result.unwrap();
    assert_eq!(a.pending(), 1);
    cancel.cancel();
    let e = wait(&endless).result.unwrap_err();
    assert_eq!(e.code, Code::LaunchTimeout);
    assert!(e.text.contains("cancelled"), "{e}");
    // A fault like others: every call returns it.
    assert_eq!(on.device.fault().unwrap().code, Code::LaunchTimeout);
    assert_eq!(b.submit(Work::Record(Event::new()), |_| ()), Err(e));
}

#[test]
fn a_launch_that_is_withdrawn_ends_alone() {
    for workers in [1, 4] {
        let on = On::workers(workers);
        let a = on.device.stream();
        let at = on.device.allocate(4096).unwrap();
        let (running, waiting) = (one(), one());
        let cancels = [running.cancel.clone(), waiting.cancel.clone()];
        let endless = submit(&a, on.launch("endless", running, at, 0));
        // However short: it has not begun.
        let never_begun = submit(&a, on.launch("step", waiting, at + 512, 1));
        let after = submit(&a, on.launch("step", one(), at + 512, 1000));
        cancels.iter().for_each(Cancel::withdraw);
        for told in [endless, never_begun] {
            let e = wait(&told).result.unwrap_err();
            assert_eq!(e.code, Code::Cancelled, "{e}");
        }
        assert_eq!(wait(&after).result.unwrap().blocks, 1);
        assert_eq!(on.device.fault(), None);
        // One that is over stays as it is, and a cancellation is stronger.
        cancels[0].cancel();
        let how = one();
        how.cancel.withdraw();
        how.cancel.cancel();
        how.cancel.withdraw();
        let e = wait(&submit(&a, on.launch("endless", how, at, 0))).result;
        assert_eq!(e.unwrap_err().code, Code::LaunchTimeout);
    }
}

#[test]
fn an_event_holds_a_stream_until_the_other_is_there() {
    for workers in [1, 2] {
        let on = On::workers(workers);
        let (a, b) = (on.device.stream(), on.device.stream());
        let at = on.device.allocate(4096).unwrap();
        let never = Event::new();
        assert!(never.is_done() && never.time().is_none());
        wait(&submit(&b, Work::Wait(never))).result.unwrap();
        for round in 0..50u32 {
            let e = Event::new();
            let value = round.to_le_bytes().to_vec();
            let slow = submit(&a, on.launch("step", one(), at + 512, 20_000));
            let write = submit(
                &a,
                Work::Write {
                    to: at,
                    data: value,
                },
            );
            submit(&a, Work::Record(e.clone()));
            let waits = submit(&b, Work::Wait(e.clone()));
            let read = submit(&b, Work::Read { from: at, bytes: 4 });
            assert_eq!(wait(&read).data, round.to_le_bytes());
            assert!(e.is_done() && e.time().unwrap() >= wait(&write).ended);
            assert!(wait(&slow).result.is_ok() && wait(&waits).result.is_ok());
        }
    }
}

#[test]
fn a_fault_is_the_answer_to_all_that_is_queued_and_each_is_told_once() {
    let on = On::workers(2);
    let (a, b) = (on.device.stream(), on.device.stream());
    let at = on.device.allocate(4096).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let event = Event::new();
    let (tell, results) = mpsc::channel();
    let queue = |s: &Stream, w: Work| {
        let (tell, told) = (tell.clone(), Arc::clone(&told));
        s.submit(w, move |d: Done| {
            told.fetch_add(1, Ordering::Relaxed);
            tell.send(d.result.map_err(|e| e.code)).unwrap();
        })
        .unwrap();
    };
    queue(&b, on.launch("endless", one(), at, 0));
    queue(&a, Work::Wait(Event::new()));
    queue(&a, on.launch("waits", one(), at, 0));
    queue(&a, on.launch("wild", one(), at, 0));
    for _ in 0..10 {
        queue(&a, on.launch("step", one(), at, 1));
        queue(&a, Work::Host(Box::new(|| panic!("not run after a fault"))));
    }
    queue(&a, Work::Record(event.clone()));
    queue(&b, Work::Wait(event.clone()));
    on.device.write(at, &[1; 4]).unwrap();
    let all: Vec<Result<Report, Code>> = (0..26)
        .map(|_| results.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 2, "{all:?}");
    assert!(
        all.iter()
            .all(|r| r.is_ok() || *r == Err(Code::IllegalAddress)),
        "{all:?}"
    );
    assert!(event.is_done());
    assert_eq!(told.load(Ordering::Relaxed), 26);
    until_idle(&a);
    until_idle(&b);
}

#[test]
fn any_number_of_launches_that_are_queued_end_with_their_device() {
    for faulty in [true, false] {
        let on = On::workers(1);
        let s = on.device.stream();
        // More than nested calls could fit on a thread's stack.
        let told: Vec<_> = (0..20_000)
            .map(|_| submit(&s, on.launch("endless", one(), 0, 0)))
            .collect();
        if faulty {
            on.device
                .kill(Error::new(Code::LaunchTimeout, "asked to end"));
        }
        drop((s, on));
        for told in &told {
            assert!(wait(told).result.is_err());
        }
    }
}

#[test]
fn a_device_is_killed_from_outside_and_ends_with_its_last_handle() {
    let on = On::workers(2);
    let at = on.device.allocate(4096).unwrap();
    let streams: Vec<Stream> = (0..4).map(|_| on.device.stream()).collect();
    let mut told = Vec::new();
    for s in &streams {
        told.push(submit(s, on.launch("endless", one(), at, 0)));
        told.push(submit(s, on.launch("step", one(), at, 1)));
    }
    on.device
        .kill(Error::new(Code::LaunchFailed, "the session is over"));
    for t in &told {
        let e = wait(t).result.unwrap_err();
        assert_eq!(
            (e.code, e.text.as_str()),
            (Code::LaunchFailed, "the session is over")
        );
    }
    assert_eq!(on.device.allocate(16).unwrap_err().code, Code::LaunchFailed);

    // The last handle is dropped while something runs and something waits.
    let on = On::workers(2);
    let at = on.device.allocate(4096).unwrap();
    let s = on.device.stream();
    let told = [
        submit(&s, on.launch("endless", one(), at, 0)),
        submit(&s, on.launch("step", one(), at, 1)),
    ];
    drop((on, s));
    for t in &told {
        // Its threads have ended, so the result is there by now.
        let e = t.try_recv().unwrap().result.unwrap_err();
        assert_eq!(e.code, Code::ContextIsDestroyed);
    }
}

#[test]
fn the_last_handle_may_go_on_a_thread_of_the_device() {
    let on = On::workers(1);
    let at = on.device.allocate(4096).unwrap();
    let (s, device) = (on.device.stream(), on.device.clone());
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let work = on.launch("step", one(), at, 10);
    s.submit(work, move |_| {
        gone.recv_timeout(PATIENCE).unwrap();
        drop(device);
        tell.send(()).unwrap();
    })
    .unwrap();
    drop((s, on));
    go.send(()).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn code_of_the_host_that_panics_ends_its_device_and_nothing_else() {
    let on = On::workers(1);
    let s = on.device.stream();
    let d = wait(&submit(&s, Work::Host(Box::new(|| panic!("for the test")))));
    assert_eq!(d.result.unwrap_err().code, Code::Unknown);
    assert_eq!(on.device.fault().unwrap().code, Code::Unknown);
}

fn rows(address: u64, pitch: u64, width: u64, height: u64) -> Rows {
    Rows {
        address,
        pitch,
        width,
        height,
    }
}

/// Rows of lengths around those of a piece, at distances that are aligned to nothing.
#[test]
fn rows_go_where_they_belong_and_leave_what_is_between() {
    let on = On::workers(2);
    let s = on.device.stream();
    let room: usize = 4 << 20;
    let size = |n: usize| n as u64;
    let (one, other) = (
        on.device.allocate(size(room)).unwrap(),
        on.device.allocate(size(room)).unwrap(),
    );
    let shapes: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (1, 2, 40_000),
        (3, 7, 9_000),
        (4, 4, 30_000),
        (1000, 1001, 700),
        (256 << 10, (256 << 10) + 4, 3),
        ((256 << 10) + 12, (256 << 10) + 24, 3),
        (700_004, 800_004, 3),
    ];
    for (width, pitch, height) in shapes {
        let data: Vec<u8> = (0..=250).cycle().take(width * height).collect();
        let mut want = vec![0xaa; room];
        for (row, from) in data.chunks(width).enumerate() {
            let to = 4 + row * pitch;
            want[to..to + width].copy_from_slice(from);
        }
        let there = |base: u64| rows(base + 4, size(pitch), size(width), size(height));
        let all = |base: u64| {
            let mut all = vec![0; room];
            on.device.read(base, &mut all).unwrap();
            all
        };
        for base in [one, other] {
            on.device.fill(base, 0xaa, 1, size(room)).unwrap();
        }
        on.device.write_rows(there(one), &data).unwrap();
        assert!(all(one) == want, "{width} {pitch} {height}: up");
        let mut back = vec![0; data.len()];
        on.device.read_rows(there(one), &mut back).unwrap();
        assert!(back == data, "{width} {pitch} {height}: down");
        let copy = Work::Copy {
            to: there(other),
            from: there(one),
        };
        wait(&submit(&s, copy)).result.unwrap();
        assert!(all(other) == want, "{width} {pitch} {height}: across");
        if width % 4 == 0 && pitch % 4 == 0 {
            let fill = Work::Fill {
                to: there(other),
                value: 0x0403_0201,
                size: 4,
            };
            wait(&submit(&s, fill)).result.unwrap();
            let element: Vec<u8> = (1..=4).cycle().take(width).collect();
            for row in 0..height {
                let at = 4 + row * pitch;
                want[at..at + width].copy_from_slice(&element);
            }
            assert!(all(other) == want, "{width} {pitch} {height}: filled");
        }
    }
    let e = on
        .device
        .write_rows(rows(one, 8, 4, 4), &[0; 15])
        .unwrap_err();
    assert_eq!(e.code, Code::InvalidValue);
}

#[test]
fn what_a_call_gets_wrong_is_its_own_answer_and_no_fault() {
    let on = On::workers(1);
    let s = on.device.stream();
    let at = on.device.allocate(64).unwrap();
    let wrong = [
        on.launch("step", Launch::new([0, 1, 1], [1; 3]), at, 1),
        Work::Read {
            from: at,
            bytes: 65,
        },
        Work::Write {
            to: at + 60,
            data: vec![0; 5],
        },
        Work::Copy {
            to: Rows::range(at, 1),
            from: Rows::range(16, 1),
        },
        Work::Fill {
            to: Rows::range(at + 1, 2),
            value: 0,
            size: 2,
        },
        Work::Fill {
            to: Rows::range(at, u64::MAX - 3),
            value: 0,
            size: 4,
        },
        Work::Copy {
            to: Rows::range(at, 4),
            from: Rows::range(at, 3),
        },
        // One byte beyond the end; distances and heights that overflow; elements across a row.
        Work::Copy {
            to: rows(at + 1, 16, 16, 4),
            from: rows(at, 16, 16, 4),
        },
        Work::Copy {
            to: rows(at, u64::MAX, 1, 3),
            from: rows(at, 1, 1, 3),
        },
        Work::Copy {
            to: rows(at, 1 << 32, 1, 1 << 33),
            from: rows(at, 1, 1, 1 << 33),
        },
        Work::Fill {
            to: rows(at, 17, 8, 3),
            value: 0,
            size: 2,
        },
        Work::Fill {
            to: rows(at, 16, 7, 3),
            value: 0,
            size: 2,
        },
    ];
    for w in wrong {
        let what = format!("{w:?}");
        let e = s.submit(w, |_| panic!("it was never queued")).unwrap_err();
        assert_eq!(e.code, Code::InvalidValue, "{what}");
    }
    // Freed between the call and its turn.
    let how = one();
    let gate = on.device.allocate(64).unwrap();
    let first = submit(&s, on.launch("waits", how, gate, 0));
    let late = submit(
        &s,
        Work::Read {
            from: at,
            bytes: 64,
        },
    );
    on.device.free(at).unwrap();
    on.device.write(gate, &[1; 4]).unwrap();
    wait(&first).result.unwrap();
    assert_eq!(wait(&late).result.unwrap_err().code, Code::InvalidValue);
    assert_eq!(on.device.fault(), None);
}

#[test]
fn blocks_for_which_there_is_no_memory_now_run_later() {
    // Shared memory for three blocks; each takes several slices, so that threads try to begin
    // others beside it.
    for workers in [1, 2, 4] {
        let on = On::new(Config {
            workers,
            run_memory: 150 << 10,
            ..Config::default()
        });
        let at = on.device.allocate(64).unwrap();
        let how = Launch {
            shared: 48 << 10,
            ..Launch::new([100, 1, 1], [32, 1, 1])
        };
        let (a, b) = (on.device.stream(), on.device.stream());
        let told = [
            submit(&a, on.launch("counts", how.clone(), at, 9000)),
            submit(&b, on.launch("counts", how, at, 9000)),
        ];
        for t in &told {
            assert_eq!(wait(t).result.unwrap().blocks, 100);
        }
        let mut n = [0; 4];
        on.device.read(at, &mut n).unwrap();
        assert_eq!(u32::from_le_bytes(n), 200, "with {workers} threads");
        // One that can never fit is refused, and is not a fault.
        let how = Launch {
            shared: 200 << 10,
            shared_opt_in: true,
            ..one()
        };
        let e = wait(&submit(&a, on.launch("counts", how, at, 1)));
        assert_eq!(e.result.unwrap_err().code, Code::LaunchOutOfResources);
        assert_eq!(on.device.fault(), None);
    }
}

#[test]
fn memory_that_is_freed_counts_until_nobody_uses_it() {
    let on = On::new(Config {
        workers: 1,
        memory: 8 << 20,
        ..Config::default()
    });
    let s = on.device.stream();
    let gate = on.device.allocate(64).unwrap();
    let big = on.device.allocate(6 << 20).unwrap();
    let (tell, begun) = mpsc::channel();
    s.submit(Work::Record(Event::new()), move |_| tell.send(()).unwrap())
        .unwrap();
    let runs = submit(&s, on.launch("waits", one(), gate, 0));
    begun.recv_timeout(PATIENCE).unwrap();
    // The launch has begun once its first step has: a copy behind it on another stream shows the
    // thread at work.
    let other = on.device.stream();
    for _ in 0..3 {
        wait(&submit(&other, Work::Record(Event::new())));
    }
    on.device.free(big).unwrap();
    assert_eq!(
        on.device.allocate(6 << 20).unwrap_err().code,
        Code::OutOfMemory
    );
    on.device.write(gate, &[1; 4]).unwrap();
    wait(&runs).result.unwrap();
    on.device.allocate(6 << 20).unwrap();
    // Small ones count at their real size.
    let small = on.device.memory().0;
    on.device.allocate(1).unwrap();
    assert_eq!(on.device.memory().0 - small, 512);
}
