//! Several threads in one session: each lane goes on whatever the others wait for, and none waits for ever.

mod script;

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use script::peer::{Control, HELD, connect};
use script::{TERMS, WATCHDOG, exchange, pipe, play};
use vgpu_guest::{Cause, Client, Error, Options, Retry};
use vgpu_protocol::session::server::Terms;
use vgpu_protocol::status::ErrorCode;
use vgpu_socket_transport::SocketTransport;
use vgpu_transport::{Interest, Transport, TransportError, Waker};

type Ends = (Box<dyn Transport>, Box<dyn Transport>);

/// Little credit, so that most data has to wait for the mediator.
const CREDIT: Terms = Terms {
    initial_credit: 1000,
    ..TERMS
};

fn sockets() -> Ends {
    let (guest, mediator) = UnixStream::pair().expect("a pair");
    let end = |stream| Box::new(SocketTransport::from_unix(stream).expect("a socket"));
    (end(guest), end(mediator))
}

fn pipes(capacity: usize, portion: usize) -> Ends {
    let (guest, mediator) = pipe::pair(capacity, portion);
    (Box::new(guest), Box::new(mediator))
}

fn patient() -> Options {
    Options {
        connect_timeout: WATCHDOG,
        stall_timeout: WATCHDOG,
        ..Options::default()
    }
}

/// A session whose waits end after a second without progress.
fn impatient() -> Options {
    Options {
        stall_timeout: Duration::from_secs(1),
        ..patient()
    }
}

/// Two lanes of a session.
fn two(ends: Ends, terms: Terms, options: &Options) -> (Client, Client, Arc<Control>) {
    let (client, control, _) = connect(ends, terms, options);
    let other = client.lane().expect("a second lane");
    (client, other, control)
}

#[test]
fn pings_are_answered_while_an_exchange_waits_on_another_lane() {
    for (ends, terms) in [
        (sockets(), CREDIT),
        (sockets(), TERMS),
        (pipes(1000, usize::MAX), CREDIT),
    ] {
        let (mut client, mut other, control) = two(ends, terms, &patient());
        control.hold();
        thread::scope(|scope| {
            let exchanging = scope.spawn(|| exchange(&mut client, 40_000, 1));
            control.wait_for(1);
            if terms.initial_credit == CREDIT.initial_credit {
                for size in (0..50).map(|step| step * 80) {
                    other.ping(&vec![7; size]).expect("an echo");
                }
                other.ping_quiet(b"hush").expect("sent");
                other.fence().expect("a fence of this lane alone");
            }
            assert!(!exchanging.is_finished());
            control.let_go();
            exchanging.join().expect("no panic").expect("an answer");
        });
        other.ping(b"x").expect("an echo");
        client.goodbye().expect("a goodbye");
    }
}

#[test]
fn answers_come_in_the_order_in_which_the_work_is_done() {
    let (mut client, mut other, control) = two(sockets(), TERMS, &patient());
    control.hold();
    for _ in 0..20 {
        thread::scope(|scope| {
            let waits = scope.spawn(|| client.ping(HELD));
            control.wait_for(1);
            for _ in 0..20 {
                other.ping(b"beside").expect("an echo");
            }
            other.fence().expect("it does not wait for the other lane");
            assert!(!waits.is_finished());
            control.let_go();
            waits.join().expect("no panic").expect("an echo");
            control.hold();
        });
    }
}

/// Every lane pings, fences and exchanges at once.
fn storm(client: &Client, lanes: usize, rounds: usize, elements: &[usize]) {
    thread::scope(|scope| {
        for number in 0..lanes {
            let mut lane = client.lane().expect("one more lane");
            scope.spawn(move || {
                for round in 0..rounds {
                    for size in [0, 1, 100 + number, 1000] {
                        let payload = vec![number.to_le_bytes()[0]; size];
                        lane.ping(&payload).expect("an echo");
                        lane.ping_quiet(&payload).expect("sent");
                    }
                    lane.fence().expect("a fence");
                    for elements in elements {
                        exchange(&mut lane, elements + 13 * number, round + number)
                            .expect("an answer");
                    }
                }
            });
        }
    });
}

#[test]
fn many_lanes_through_narrow_and_wide_streams() {
    for (ends, terms, rounds, elements) in [
        (
            pipes(1 << 16, usize::MAX),
            CREDIT,
            1,
            &[1, 2000, 70_000][..],
        ),
        (pipes(50, 7), CREDIT, 1, &[1, 100]),
        (sockets(), CREDIT, 3, &[1, 2000, 70_000]),
        (sockets(), TERMS, 2, &[1, 2000, 150_000]),
    ] {
        let (mut client, control, mediator) = connect(ends, terms, &patient());
        storm(&client, 5, rounds, elements);
        client.ping(b"x").expect("an echo");
        control.wait_for(0);
        client.goodbye().expect("a goodbye");
        mediator.join().expect("the mediator saw nothing wrong");
    }
}

#[test]
fn lanes_beyond_what_the_mediator_takes_at_once_wait_their_turn() {
    let terms = Terms {
        max_requests: std::num::NonZeroU16::MIN,
        ..CREDIT
    };
    let (client, _, mediator) = connect(sockets(), terms, &patient());
    thread::scope(|scope| {
        for number in 0..5 {
            let mut lane = client.lane().expect("one more lane");
            scope.spawn(move || {
                for round in 0..20 {
                    lane.ping(&[1; 9]).expect("an echo");
                    exchange(&mut lane, 3000, round + number).expect("an answer");
                }
            });
        }
    });
    client.goodbye().expect("a goodbye");
    mediator.join().expect("the mediator saw nothing wrong");
}

#[test]
fn lanes_are_as_many_as_were_offered() {
    let (client, _, _) = connect(sockets(), TERMS, &patient());
    let lanes: Vec<Client> = (1..TERMS.max_lanes.get())
        .map(|_| client.lane().expect("one more lane"))
        .collect();
    let error = client.lane().expect_err("one too many");
    assert!(matches!(error.cause(), Cause::Input(_)), "{error}");
    drop(lanes);
    client.lane().expect("they are free again");
}

#[test]
fn a_request_that_is_stuck_is_given_up_and_the_other_lanes_go_on() {
    for leads in [true, false] {
        let (mut client, mut other, control) = two(sockets(), TERMS, &impatient());
        control.hold();
        let given_up = AtomicBool::new(false);
        thread::scope(|scope| {
            let stuck = scope.spawn(|| {
                if !leads {
                    // Not before the other lane has the lead.
                    thread::sleep(Duration::from_millis(50));
                }
                let error = client.ping(HELD).expect_err("no answer");
                given_up.store(true, Ordering::SeqCst);
                error
            });
            let deadline = Instant::now() + WATCHDOG;
            while !given_up.load(Ordering::SeqCst) {
                assert!(Instant::now() < deadline);
                other.ping(b"going on").expect("an echo");
            }
            let error = stuck.join().expect("no panic");
            assert!(matches!(error.cause(), Cause::GivenUp(_)), "{error}");
            assert_eq!(error.retry(), Retry::SameSession);
        });
        // Its answer comes after all, and is nobody's.
        control.let_go();
        control.wait_for(0);
        client.ping(b"x").expect("an echo");
        exchange(&mut client, 1000, 1).expect("an answer");
        other.ping(b"x").expect("an echo");
    }
}

#[test]
fn an_exchange_that_is_stuck_between_two_frames_is_given_up_alone() {
    let (mut client, mut other, control) = two(sockets(), CREDIT, &impatient());
    control.hold();
    let given_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let stuck = scope.spawn(|| {
            let error = exchange(&mut client, 10_000, 1).expect_err("no credit");
            given_up.store(true, Ordering::SeqCst);
            error
        });
        let deadline = Instant::now() + WATCHDOG;
        while !given_up.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline);
            other.ping(b"going on").expect("an echo");
        }
        let error = stuck.join().expect("no panic");
        assert!(matches!(error.cause(), Cause::GivenUp(_)), "{error}");
    });
    // The mediator hears of it with what comes next.
    other.ping(b"x").expect("an echo");
    control.wait_for(0);
    control.let_go();
    exchange(&mut client, 10_000, 2).expect("an answer");
}

#[test]
fn a_mediator_that_falls_silent_ends_the_session_of_all_lanes() {
    let (mut client, mut other, control) = two(sockets(), TERMS, &impatient());
    control.hold();
    thread::scope(|scope| {
        let one = scope.spawn(|| client.ping(HELD).expect_err("silence"));
        let two = scope.spawn(|| other.ping(HELD).expect_err("silence"));
        let errors = [one, two].map(|thread| thread.join().expect("no panic"));
        let stalled = |error: &Error| matches!(error.cause(), Cause::Stalled(_));
        let over = |error: &Error| matches!(error.cause(), Cause::SessionOver(_));
        assert!(errors.iter().any(stalled), "{errors:?}");
        assert!(errors.iter().all(|error| stalled(error) || over(error)));
    });
    let error = other.ping(b"x").expect_err("over");
    assert!(matches!(error.cause(), Cause::SessionOver(_)), "{error}");
}

#[test]
fn a_panic_in_the_middle_of_a_call_leaves_no_lane_waiting() {
    // Between two frames the others go on; in the middle of one, which nobody else can complete, the
    // session is over for all.
    for (ends, elements, goes_on) in [
        (sockets(), 1000, true),
        (pipes(300, usize::MAX), 400_000, false),
    ] {
        let (mut client, mut other, _control) = two(ends, TERMS, &patient());
        let (data, mut back) = (vec![1; 8 * elements], vec![0; 4 * elements]);
        let waits = thread::spawn(move || {
            let result = other.ping(HELD);
            (other, result)
        });
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            client.exchange_watched(&data, &mut back, |_| panic!("enough"))
        }));
        assert!(panicked.is_err());
        let (mut other, _) = waits.join().expect("no panic");
        let outcome = other.ping(b"x");
        match goes_on {
            true => {
                outcome.expect("an echo");
                client.ping(b"x").expect("an echo");
            }
            false => {
                let error = outcome.expect_err("over");
                assert!(error.to_string().contains("panicked"), "{error}");
                client.ping(b"x").expect_err("over here too");
            }
        }
    }
}

#[test]
fn a_panic_between_two_frames_leaves_a_session_that_drops_what_still_comes() {
    let (client, mediator) = play(300, usize::MAX, &patient(), |script| {
        script.welcome(CREDIT)?;
        let (request, _) = script.receive()?;
        let (_, data) = script.receive()?;
        assert_eq!(data.len(), 1000, "all that was granted");
        // The guest panics at the first of these bytes; the pipe holds few of them.
        script.data(&request, &[1; 3000])?;
        let (end, nothing) = script.receive()?;
        assert_eq!((end.request_id, nothing.len()), (request.request_id, 0));
        assert!(!end.has_more());
        script.refuse(&request, ErrorCode::Cancelled, "given up")?;
        let (ping, body) = script.receive()?;
        script.echo(&ping, &body)
    });
    let mut client = client.expect("a session");
    let (data, mut back) = ([1; 8000], [0; 4000]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        client.exchange_watched(&data, &mut back, |_| panic!("enough"))
    }));
    assert!(panicked.is_err());
    client.ping(b"x").expect("an echo");
    mediator.join().expect("no panic").expect("no fault");
}

#[test]
fn an_interrupt_ends_the_waits_of_all_lanes() {
    let interrupt = Arc::new(AtomicBool::new(false));
    let options = Options {
        interrupt: Some(Arc::clone(&interrupt)),
        ..patient()
    };
    let (mut client, mut other, control) = two(sockets(), TERMS, &options);
    control.hold();
    thread::scope(|scope| {
        let one = scope.spawn(|| client.ping(HELD).expect_err("interrupted"));
        let two = scope.spawn(|| other.ping(HELD).expect_err("interrupted"));
        control.wait_for(2);
        interrupt.store(true, Ordering::Relaxed);
        for thread in [one, two] {
            let error = thread.join().expect("no panic");
            assert!(matches!(error.cause(), Cause::Interrupted), "{error}");
        }
    });
}

#[test]
fn a_goodbye_of_one_lane_ends_the_calls_of_the_others() {
    for _ in 0..20 {
        let (mut client, other, control) = two(sockets(), TERMS, &patient());
        control.hold();
        let waits = thread::spawn(move || client.ping(HELD).expect_err("over"));
        control.wait_for(1);
        other.goodbye().expect("a goodbye");
        let error = waits.join().expect("no panic");
        assert!(matches!(error.cause(), Cause::SessionOver(_)), "{error}");
        assert!(error.to_string().contains("goodbye"), "{error}");
    }
}

/// Counts the calls of each kind: writes, reads, waits, flushes.
struct Counting {
    inner: Box<dyn Transport>,
    counts: Arc<[AtomicUsize; 4]>,
}

impl Counting {
    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::SeqCst);
    }
}

impl Transport for Counting {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.count(1);
        self.inner.try_read(buf)
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        self.count(0);
        self.inner.try_write(buf)
    }

    fn try_write_parts(&mut self, parts: &[&[u8]]) -> Result<usize, TransportError> {
        self.count(0);
        self.inner.try_write_parts(parts)
    }

    fn wait_or(
        &mut self,
        _: Option<Interest>,
        _: &Waker,
        _: Instant,
    ) -> Result<(), TransportError> {
        panic!("nobody else is there to wake this lane");
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError> {
        self.count(2);
        self.inner.wait(interest, deadline)
    }

    fn flush(&mut self, deadline: Instant) -> Result<(), TransportError> {
        self.count(3);
        self.inner.flush(deadline)
    }

    fn close(&mut self, deadline: Instant) -> Result<(), TransportError> {
        self.inner.close(deadline)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_request_of_a_single_lane_takes_one_write_and_no_read_too_many() {
    let counts: Arc<[AtomicUsize; 4]> = Arc::default();
    let (inner, mediator) = sockets();
    let counting = Box::new(Counting {
        inner,
        counts: Arc::clone(&counts),
    });
    let (mut client, _, _) = connect((counting, mediator), TERMS, &patient());
    for elements in [0, 1, 1000] {
        let before = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        match elements {
            0 => drop(client.ping(&[1; 16]).expect("an echo")),
            elements => exchange(&mut client, elements, 1).expect("an answer"),
        }
        let after = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        let [writes, reads, waits, flushes] =
            std::array::from_fn(|kind| after[kind] - before[kind]);
        // Request, headers and data leave together.
        assert_eq!(writes, 1, "{elements} elements");
        assert!(flushes <= 1);
        // A read that finds nothing is followed by a wait, and the answer comes in three parts at most.
        assert!(reads <= waits + 3, "{reads} reads, {waits} waits");
    }
}
