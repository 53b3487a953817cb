//! The rules of a session against a model of a file system with the worst behaviour of NFS and
//! sshfs: listings that lag, names that outlive their files, contents that are torn for a while,
//! writes that report failure but have happened.
//!
//! Whatever it does, the bytes that one side takes are a prefix of those that the other sent, in
//! order, each once; and once it behaves, all of them arrive.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vgpu_file_transport::SessionName;
use vgpu_file_transport::session::file_name::GONE;
use vgpu_file_transport::session::rules::{Exchange, Fault, Piece, RETRY_LIMIT, SILENCE};
use vgpu_file_transport::session::segment::{HEADER, Role};
use vgpu_file_transport::session::shared_directory::{Content, Free, SharedDirectory, Trouble};

/// Pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in `n` of 100 cases.
    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

/// The probability of each fault, in percent.
#[derive(Debug, Clone, Copy, Default)]
struct Trials {
    /// A listing repeats the last one.
    old_listing: u64,
    /// A listing lacks a name that was there before.
    missed_name: u64,
    /// A file is read with its end cut off, or a bit changed.
    torn: u64,
    /// A write fails, and nothing has happened.
    failed: u64,
    /// A write reports failure, but has happened.
    failed_but_done: u64,
    /// A file cannot be removed.
    kept: u64,
}

type Server = Rc<RefCell<BTreeMap<String, Vec<u8>>>>;

/// One side's view of the directory.
struct View {
    server: Server,
    /// The last honest listing.
    listing: Vec<String>,
    trials: Trials,
    random: Random,
    /// The bytes ever made under each name: none may change.
    made: BTreeMap<String, Vec<u8>>,
    /// Size of the file system in bytes, where it is bounded.
    pool: Option<u64>,
    /// Whether it reports its free space.
    tells: bool,
}

impl View {
    fn free_bytes(&self) -> u64 {
        // Files occupy whole blocks.
        let used = |file: &Vec<u8>| (file.len() as u64).next_multiple_of(4096);
        let used: u64 = self.server.borrow().values().map(used).sum();
        self.pool.map_or(u64::MAX, |pool| pool.saturating_sub(used))
    }
}

fn refused(what: &str) -> Trouble {
    Trouble::Io {
        context: what.into(),
        source: io::ErrorKind::StorageFull.into(),
    }
}

impl SharedDirectory for View {
    fn list(&mut self) -> Result<Vec<String>, Trouble> {
        if !self.random.percent(self.trials.old_listing) {
            self.listing = self.server.borrow().keys().cloned().collect();
        }
        let mut names = self.listing.clone();
        names.retain(|_| !self.random.percent(self.trials.missed_name));
        Ok(names)
    }

    fn read(&mut self, name: &str, most: usize) -> Result<Content, Trouble> {
        assert!(
            self.listing.iter().any(|listed| listed == name),
            "{name} was looked up unseen"
        );
        let Some(mut bytes) = self.server.borrow().get(name).cloned() else {
            return Ok(Content::Absent);
        };
        if bytes.len() > most {
            return Ok(Content::Unfit("too long"));
        }
        if self.random.percent(self.trials.torn) {
            let at = self.random.below(bytes.len() as u64);
            let at = usize::try_from(at).unwrap();
            if self.random.percent(50) {
                bytes.truncate(at);
            } else {
                // As where a page of the file has not arrived yet.
                bytes[at..].fill(0);
            }
        }
        Ok(Content::Bytes(bytes))
    }

    fn publish(&mut self, name: &str, bytes: &[u8]) -> Result<(), Trouble> {
        if (bytes.len() as u64).next_multiple_of(4096) > self.free_bytes() {
            return Err(Trouble::Full {
                context: "no space".into(),
                source: io::ErrorKind::StorageFull.into(),
            });
        }
        let before = self.made.insert(name.into(), bytes.into());
        assert!(
            before.is_none_or(|before| before == bytes),
            "{name} gets other bytes"
        );
        if self.random.percent(self.trials.failed) {
            return Err(refused("no space"));
        }
        self.server.borrow_mut().insert(name.into(), bytes.into());
        if self.random.percent(self.trials.failed_but_done) {
            return Err(refused("no answer"));
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Trouble> {
        if self.random.percent(self.trials.kept) {
            return Err(refused("not permitted"));
        }
        self.server.borrow_mut().remove(name);
        Ok(())
    }

    fn free(&mut self) -> Option<Free> {
        let size = self.pool.filter(|_| self.tells)?;
        Some(Free {
            size,
            bytes: self.free_bytes(),
            files: u64::MAX,
        })
    }
}

struct Side {
    exchange: Exchange,
    view: View,
    to_send: Vec<u8>,
    sent: usize,
    closing: bool,
    received: Vec<u8>,
}

impl Side {
    fn new(
        role: Role,
        server: &Server,
        writer: u8,
        trials: Trials,
        seed: u64,
        now: Instant,
    ) -> Self {
        Self {
            exchange: Exchange::new(role, SessionName::new([1; 16]), [writer; 16], true, now),
            view: View {
                server: Rc::clone(server),
                listing: Vec::new(),
                trials,
                random: Random(seed | 1),
                made: BTreeMap::new(),
                pool: None,
                tells: true,
            },
            to_send: Vec::new(),
            sent: 0,
            closing: false,
            received: Vec::new(),
        }
    }

    /// One turn of the transport's thread.
    fn turn(&mut self, now: Instant) -> Result<(), Fault> {
        let space = 1 + usize::try_from(self.view.random.below(5000)).unwrap();
        let looked = self.exchange.look(&mut self.view, space, now)?;
        for piece in &looked.pieces {
            self.received.extend(piece.bytes());
        }
        let size = 1 + usize::try_from(self.view.random.below(3000)).unwrap();
        let mut next = || {
            let rest = &self.to_send[self.sent..];
            if rest.is_empty() && !self.closing {
                return None;
            }
            let n = rest.len().min(size);
            let file = [&[0; HEADER][..], &rest[..n]].concat();
            self.sent += n;
            let last = self.closing && n == rest.len();
            Some(Piece { file, last })
        };
        self.exchange.send(&mut self.view, &mut next, now)?;
        self.exchange.beat(&mut self.view, now)?;
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.exchange.is_finished()
    }
}

fn bytes(n: usize, seed: u8) -> Vec<u8> {
    (0..=250u8).cycle().skip(seed.into()).take(n).collect()
}

/// Runs a session until both sides are done or one has given up; returns the faults.
fn run(trials: Trials, seed: u64, sizes: [usize; 2]) -> [Option<Fault>; 2] {
    let start = Instant::now();
    let server = Server::default();
    let mut sides = [
        Side::new(Role::Guest, &server, 2, trials, seed, start),
        Side::new(
            Role::Mediator,
            &server,
            3,
            trials,
            seed.rotate_left(32),
            start,
        ),
    ];
    let data = [bytes(sizes[0], 0), bytes(sizes[1], 100)];
    for (side, data) in sides.iter_mut().zip(&data) {
        side.to_send.clone_from(data);
        side.closing = true;
    }
    let mut faults = [None, None];
    let mut now = start;
    let mut random = Random(seed.rotate_left(16) | 1);
    for _ in 0..20_000 {
        now += Duration::from_millis(random.below(30));
        let which = usize::try_from(random.below(2)).unwrap();
        if faults[which].is_none() && !sides[which].is_done() {
            faults[which] = sides[which].turn(now).err();
        }
        for (side, data) in sides.iter().zip([&data[1], &data[0]]) {
            assert!(
                data.starts_with(&side.received),
                "other bytes than were sent"
            );
        }
        if sides
            .iter()
            .zip(&faults)
            .all(|(side, fault)| side.is_done() || fault.is_some())
        {
            break;
        }
    }
    for (which, side) in sides.iter().enumerate() {
        if faults[which].is_none() && side.is_done() {
            assert!(side.received == data[1 - which], "{which} ended early");
        } else if faults[which].is_none() {
            // Before it has a peer, and once it has read all, its caller's deadline ends its wait.
            let waits = !side.exchange.is_connected() || side.exchange.has_read_all();
            let left = faults[1 - which].is_some() && waits;
            assert!(left, "side {which} neither ended nor failed");
        }
    }
    faults
}

#[test]
fn a_helpful_file_system_carries_everything() {
    assert!(matches!(
        run(Trials::default(), 1, [100_000, 70_000]),
        [None, None]
    ));
    assert!(matches!(run(Trials::default(), 2, [0, 0]), [None, None]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// No behaviour of NFS and sshfs ends a session or changes a byte.
    #[test]
    fn old_and_torn_views_delay_and_never_change(
        seed in any::<u64>(), old_listing in 0u64..98, missed_name in 0u64..60, torn in 0u64..60,
        kept in 0u64..100, sizes in any::<[u16; 2]>(),
    ) {
        let trials = Trials { old_listing, missed_name, torn, kept, ..Trials::default() };
        let faults = run(trials, seed, sizes.map(usize::from));
        prop_assert!(matches!(faults, [None, None]), "{faults:?}");
    }

    /// Writes that fail, with or without effect, are repeated without a byte lost or doubled; if
    /// they fail for too long, the session ends with an error.
    #[test]
    fn failing_writes_lose_and_double_nothing(
        seed in any::<u64>(), failed in 0u64..60, failed_but_done in 0u64..60, old_listing in 0u64..80,
        sizes in any::<[u16; 2]>(),
    ) {
        let trials = Trials { failed, failed_but_done, old_listing, ..Trials::default() };
        run(trials, seed, sizes.map(usize::from));
    }
}

/// Sends `total` bytes to a mediator that echoes them, and reads nothing while it still has to
/// send: through a file system of `pool` bytes, with looks in an order that `seed` determines.
fn echo(pool: u64, total: usize, seed: u64) -> Result<(), String> {
    const PIECE: usize = 1 << 20;
    let mut now = Instant::now();
    let server = Server::default();
    let trials = Trials::default();
    let mut guest = Side::new(Role::Guest, &server, 2, trials, seed, now);
    let mut mediator = Side::new(Role::Mediator, &server, 3, trials, seed, now);
    guest.view.pool = Some(pool);
    mediator.view.pool = Some(pool);
    guest.to_send = bytes(total, 3);
    let mut random = Random(seed | 1);
    let mut returned = 0;
    for _ in 0..40_000 {
        now += Duration::from_millis(1);
        let (side, space) = match random.percent(50) {
            true => (&mut guest, 2 * PIECE),
            false if mediator.received.len() - returned > PIECE => (&mut mediator, 0),
            false => (&mut mediator, 2 * PIECE),
        };
        let mut turn = || {
            let looked = side.exchange.look(&mut side.view, space, now)?;
            for piece in &looked.pieces {
                side.received.extend(piece.bytes());
            }
            let (all, sent) = match side.exchange.role() {
                Role::Guest => (&side.to_send, &mut side.sent),
                Role::Mediator => (&side.received, &mut returned),
            };
            let mut next = || {
                let rest = &all[*sent..];
                let n = rest.len().min(PIECE);
                *sent += n;
                let file = [&[0; HEADER][..], &rest[..n]].concat();
                (n > 0).then_some(Piece { file, last: false })
            };
            side.exchange.send(&mut side.view, &mut next, now)?;
            side.exchange.beat(&mut side.view, now)
        };
        turn().map_err(|fault: Fault| fault.to_string())?;
        if guest.received.len() == total {
            assert!(guest.received == guest.to_send, "other bytes");
            return Ok(());
        }
    }
    Err(format!(
        "neither goes on: {} sent, {} back",
        guest.sent,
        guest.received.len()
    ))
}

#[test]
fn two_directions_through_a_file_system_smaller_than_both_windows_finish() {
    for pool in [1 << 20, 6 << 20, 12 << 20] {
        for seed in [1, 4_711] {
            echo(pool, 16 << 20, seed).unwrap_or_else(|why| panic!("{pool}, {seed}: {why}"));
        }
    }
}

#[test]
fn a_full_file_system_ends_the_session_and_a_question_still_fits_into_what_is_kept_free() {
    let mut now = Instant::now();
    let (server, mut guest, mut mediator) = pair(&mut now);
    guest.view.pool = Some(8 << 20);
    mediator.view.pool = Some(8 << 20);
    // Other users leave half of the reserve free.
    server
        .borrow_mut()
        .insert("filler".into(), vec![0; (7 << 20) + (1 << 19)]);
    guest.to_send.extend(b" and more");
    guest.turn(now).unwrap();
    now += Duration::from_millis(200);
    mediator.turn(now).unwrap();
    assert_eq!(mediator.received, b"request and more");
    let began = now;
    let mut next = || {
        let file = vec![0; HEADER + (1 << 16)];
        Some(Piece { file, last: false })
    };
    let fault = loop {
        now += Duration::from_millis(100);
        mediator.turn(now).unwrap();
        guest.exchange.look(&mut guest.view, 1 << 20, now).unwrap();
        match guest.exchange.send(&mut guest.view, &mut next, now) {
            Ok(wrote) => assert!(!wrote && now - began < RETRY_LIMIT * 2),
            Err(fault) => break fault.to_string(),
        }
        guest.exchange.beat(&mut guest.view, now).unwrap();
    };
    assert!(fault.contains("No space left on device"), "{fault}");
    assert!(now - began >= RETRY_LIMIT);
}

#[test]
fn a_side_that_did_not_run_tries_more_than_once_before_it_gives_up() {
    let mut now = Instant::now();
    let (_server, mut guest, _mediator) = pair(&mut now);
    guest.view.pool = Some(0);
    guest.view.tells = false;
    guest.to_send.extend(b" and more");
    guest.turn(now).unwrap();
    now += Duration::from_secs(3600);
    guest.turn(now).unwrap();
    guest.view.pool = None;
    guest.turn(now).unwrap();
    assert_eq!(guest.sent, guest.to_send.len());
    assert!(!guest.exchange.is_held_up());
}

/// Two sides that have exchanged a few bytes.
fn pair(now: &mut Instant) -> (Server, Side, Side) {
    let server = Server::default();
    let trials = Trials::default();
    let mut guest = Side::new(Role::Guest, &server, 2, trials, 5, *now);
    let mut mediator = Side::new(Role::Mediator, &server, 3, trials, 6, *now);
    guest.to_send = b"request".to_vec();
    for _ in 0..5 {
        *now += Duration::from_millis(200);
        guest.turn(*now).unwrap();
        mediator.turn(*now).unwrap();
    }
    assert_eq!(mediator.received, b"request");
    (server, guest, mediator)
}

#[test]
fn a_silent_side_is_dead_after_the_stated_time_and_a_sleeping_one_is_not() {
    let mut now = Instant::now();
    let (_server, mut guest, mut mediator) = pair(&mut now);
    // This side was asleep for an hour and the other was not: it looks before it judges.
    now += Duration::from_secs(3600);
    mediator.turn(now).unwrap();
    guest.turn(now).unwrap();
    // From here on the mediator is dead.
    let died = now;
    let fault = loop {
        now += Duration::from_millis(500);
        match guest.turn(now) {
            Ok(()) => assert!(now - died < SILENCE * 2),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(fault, Fault::Silent(Role::Mediator, _)), "{fault}");
    assert!(now - died >= SILENCE && now - died < SILENCE + Duration::from_secs(2));
}

#[test]
fn word_that_the_mediator_is_gone_ends_the_session_after_its_last_bytes() {
    let mut now = Instant::now();
    let (server, mut guest, mut mediator) = pair(&mut now);
    mediator.to_send = b"answer".to_vec();
    mediator.turn(now).unwrap();
    server.borrow_mut().insert(GONE.into(), Vec::new());
    guest.turn(now).unwrap();
    assert_eq!(guest.received, b"answer");
    assert!(matches!(guest.turn(now), Err(Fault::MediatorGone)));
}

/// Both sides close, and the mediator's process ends before it has seen the guest's end of the stream.
#[test]
fn a_mediator_that_leaves_first_keeps_no_guest_waiting() {
    for how in ["word of it", "it gave up", "silence"] {
        let mut now = Instant::now();
        let (server, mut guest, mut mediator) = pair(&mut now);
        (mediator.to_send, mediator.closing) = (b"answer".to_vec(), true);
        mediator.turn(now).unwrap();
        guest.turn(now).unwrap();
        assert_eq!(guest.received, b"answer");
        guest.closing = true;
        guest.turn(now).unwrap();
        assert!(!guest.exchange.was_read_whole(), "nobody has read the end");
        match how {
            "silence" => {}
            "it gave up" => mediator.exchange.give_up(&mut mediator.view, now).unwrap(),
            _ => drop(server.borrow_mut().insert(GONE.into(), Vec::new())),
        }
        let left = now;
        while !guest.is_done() {
            now += Duration::from_millis(500);
            guest.turn(now).unwrap();
            let patience = if how == "silence" {
                SILENCE
            } else {
                Duration::ZERO
            };
            assert!(now - left <= patience + Duration::from_secs(2), "{how}");
        }
    }
}

#[test]
fn bytes_that_a_mediator_left_unread_are_lost_also_after_the_end_of_its_stream() {
    let mut now = Instant::now();
    let (server, mut guest, mut mediator) = pair(&mut now);
    mediator.closing = true;
    mediator.turn(now).unwrap();
    guest.turn(now).unwrap();
    guest.to_send = b"request, and another".to_vec();
    guest.turn(now).unwrap();
    server.borrow_mut().insert(GONE.into(), Vec::new());
    assert!(matches!(guest.turn(now), Err(Fault::MediatorGone)));
}

#[test]
fn nobody_goes_on_with_anothers_session() {
    let mut now = Instant::now();
    let (server, mut guest, mediator) = pair(&mut now);
    // A second mediator that joins by mistake, with numbers that would fit.
    drop(mediator);
    server
        .borrow_mut()
        .retain(|name, _| !name.starts_with("m-"));
    let mut second = Side::new(Role::Mediator, &server, 4, Trials::default(), 7, now);
    for _ in 0..10 {
        now += Duration::from_secs(1);
        second.turn(now).unwrap();
    }
    let fault = guest.turn(now).unwrap_err();
    assert!(
        fault
            .to_string()
            .contains("its writer is that of another file"),
        "{fault}"
    );
}

#[test]
fn acknowledging_what_was_never_sent_is_a_violation() {
    let mut now = Instant::now();
    let (_server, mut guest, mut mediator) = pair(&mut now);
    // The mediator's acknowledgement is for a guest that sent more.
    guest.to_send.extend(b" and more");
    guest.turn(now).unwrap();
    mediator.turn(now + Duration::from_secs(1)).unwrap();
    let fresh = Exchange::new(Role::Guest, SessionName::new([1; 16]), [2; 16], true, now);
    let mut forgetful = Side {
        exchange: fresh,
        sent: 0,
        to_send: Vec::new(),
        ..guest
    };
    forgetful.view.made.clear();
    let fault = forgetful.turn(now).unwrap_err();
    assert!(
        fault.to_string().contains("says it has taken segment"),
        "{fault}"
    );
}
