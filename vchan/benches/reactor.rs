//! The cost that one bad channel causes 99 good ones in the same thread: `cargo bench -p vchan
//! --bench reactor`.
//!
//! One thread echoes on 100 channels of a reactor, another sends on 99 of them and checks each
//! answer. The hundredth is idle or misbehaves; the good ones' throughput beside a bad one is
//! compared with that beside an idle one, in turns. Two rates are measured: bytes per second of the
//! echoing thread's processor time, an upper bound that does not depend on other users of the
//! machine, and bytes per second by the clock, which does.
//!
//! The bad one's work is done in the asking thread, and beside the idle one that thread makes the
//! same system calls to no effect: a real attacker has a processor of its own, so this program must
//! not give it ours.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use nix::time::ClockId;
use vchan::layout::offset;
use vchan::reactor::{Handle, Reactor};
use vchan::{Channel, local};
use vchan_testing::conformance::many::{Ask, Echo, Many};
use vchan_testing::peer::LyingPeer;

const GOOD: u64 = 99;
const RING: usize = 16 << 10;
const ROUNDS: usize = 9;
const WARM_UP: Duration = Duration::from_millis(100);
const MEASURE: Duration = Duration::from_millis(500);
/// Rings in each turn of the asking thread.
const STORM: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    /// Connected, and silent.
    Idle,
    /// Its rings are full, and it reads nothing.
    Stalled,
    /// Rings without end and moves nothing.
    Storm,
    /// Rings without end, with one more byte each time.
    Trickle,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn pair(servers: &Handle, clients: &Handle) -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().expect("a socket pair");
    thread::scope(|scope| {
        let client = scope.spawn(|| local::connect_on_reactor(clients, other, soon()));
        let server = local::serve_on_reactor(servers, one, RING, soon()).expect("a server");
        (server, client.join().expect("no panic").expect("a client"))
    })
}

/// Throughput of the good channels together, both directions counted.
struct Rates {
    /// MB for each second of the echoing thread's processor time.
    processor: f64,
    /// MB a second.
    clock: f64,
}

/// Processor time of the calling thread, in nanoseconds.
fn processor_time() -> u64 {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("a clock");
    u64::try_from(Duration::from(time).as_nanos()).expect("less than centuries")
}

fn measure(bad: Bad) -> Rates {
    let mut servers = Reactor::new().expect("a reactor");
    let mut clients = Reactor::new().expect("a reactor");
    let (mut echoes, mut asks) = (Many::default(), Many::default());
    for seed in 0..GOOD {
        let (server, client) = pair(servers.handle(), clients.handle());
        echoes.add(server, Echo::default());
        asks.add(client, Ask::new(seed, u64::MAX));
    }
    let (one, other) = UnixStream::pair().expect("a socket pair");
    let liar = thread::spawn(move || LyingPeer::connect(other, soon()));
    let server = local::serve_on_reactor(servers.handle(), one, RING, soon()).expect("a server");
    let liar = liar.join().expect("no panic").expect("a peer");
    echoes.add(server, Echo::default());
    if bad == Bad::Stalled {
        // A full ring whose answers are never read.
        liar.page.set_u32(offset::LEFT_PROD, 16 << 10);
    }

    // Events that an epoll descriptor collects as it does the bell's.
    let nobody = EventFd::from_value(1).expect("an eventfd");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll descriptor");
    let edges = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
    epoll.add(nobody.as_fd(), edges).expect("epoll");

    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                taken.store(processor_time(), Ordering::Relaxed);
                let until = Instant::now() + Duration::from_millis(20);
                echoes.turn(&mut servers, until).expect("the reactor");
            }
        });
        let start = Instant::now();
        let (mut from, mut trickled) = (None, 0u32);
        let rates = loop {
            for _ in 0..STORM {
                match bad {
                    Bad::Idle | Bad::Stalled => drop(nobody.write(0)),
                    Bad::Storm => liar.ring(),
                    Bad::Trickle => {
                        // Sends no more than the victim has taken, and takes nothing back.
                        if trickled.wrapping_sub(liar.page.u32(offset::LEFT_CONS)) < 4096 {
                            trickled = trickled.wrapping_add(1);
                            liar.page.set_u32(offset::LEFT_PROD, trickled);
                        }
                        let answered = liar.page.u32(offset::RIGHT_PROD);
                        liar.page.set_u32(offset::RIGHT_CONS, answered);
                        liar.ring();
                    }
                }
            }
            let until = Instant::now() + Duration::from_millis(1);
            asks.turn(&mut clients, until).expect("the reactor");
            let elapsed = start.elapsed();
            if elapsed < WARM_UP {
                continue;
            }
            let received: u64 = asks.works().map(Ask::received).sum();
            let taken = taken.load(Ordering::Relaxed);
            let (then, taken_before, before) =
                *from.get_or_insert((Instant::now(), taken, received));
            if elapsed >= WARM_UP + MEASURE {
                let megabytes = (received - before) as f64 / 1e6;
                break Rates {
                    processor: megabytes / ((taken - taken_before) as f64 / 1e9),
                    clock: megabytes / then.elapsed().as_secs_f64(),
                };
            }
        };
        stop.store(true, Ordering::Relaxed);
        rates
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!("| the hundredth channel | MB per processor second | ratio | MB/s | ratio |");
    println!("|---|---|---|---|---|");
    for bad in [Bad::Idle, Bad::Stalled, Bad::Storm, Bad::Trickle] {
        let pairs: Vec<(Rates, Rates)> = (0..ROUNDS)
            .map(|_| (measure(Bad::Idle), measure(bad)))
            .collect();
        let of = |f: fn(&(Rates, Rates)) -> f64| median(pairs.iter().map(f).collect());
        println!(
            "| {} | {:.0} | {:.2} | {:.0} | {:.2} |",
            format!("{bad:?}").to_lowercase(),
            of(|(_, with)| with.processor),
            of(|(idle, with)| with.processor / idle.processor),
            of(|(_, with)| with.clock),
            of(|(idle, with)| with.clock / idle.clock),
        );
    }
}
