//! A guest's and a mediator's transport over one real directory.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vgpu_file_transport::SessionName;
use vgpu_file_transport::session::file_name::segment;
use vgpu_file_transport::session::rules::SILENCE;
use vgpu_file_transport::session::segment::{Kind, Role};
use vgpu_file_transport::session::{ConnectError, FileTransport, Settings, accept, connect};
use vgpu_transport::{Interest, Transport, TransportError, Waker};

const WATCHDOG: Duration = Duration::from_secs(60);

fn deadline() -> Instant {
    Instant::now() + WATCHDOG
}

/// The one session in `directory`, as soon as it exists.
fn session(directory: &Path) -> SessionName {
    let deadline = deadline();
    loop {
        let mut names = fs::read_dir(directory.join("sessions")).unwrap();
        if let Some(name) = names.next() {
            return name.unwrap().file_name().to_str().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < deadline, "no session");
        thread::sleep(Duration::from_millis(2));
    }
}

fn connect_in(directory: &Path) -> Result<FileTransport, ConnectError> {
    connect(directory, &Settings::default(), deadline(), &|| false)
}

fn pair(directory: &Path) -> (FileTransport, FileTransport) {
    fs::create_dir_all(directory.join("sessions")).unwrap();
    thread::scope(|scope| {
        let guest = scope.spawn(|| connect_in(directory).unwrap());
        let mediator = accept(directory, None, session(directory), 7, SILENCE, deadline()).unwrap();
        (guest.join().unwrap(), mediator)
    })
}

fn path(directory: &Path) -> PathBuf {
    directory
        .join("sessions")
        .join(session(directory).to_string())
}

fn bytes(n: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(n).collect()
}

#[test]
fn small_messages_go_there_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guest, mut mediator) = pair(directory.path());
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 16];
            for _ in 0..50 {
                mediator.read_exact(&mut buffer, deadline()).unwrap();
                mediator.write_all(&buffer, deadline()).unwrap();
                mediator.flush(deadline()).unwrap();
            }
            assert!(matches!(
                mediator.read_exact(&mut buffer, deadline()),
                Err(TransportError::Closed)
            ));
            mediator.close(deadline()).unwrap();
        });
        for round in 0..50u8 {
            let mut answer = [0; 16];
            guest.write_all(&[round; 16], deadline()).unwrap();
            guest.flush(deadline()).unwrap();
            guest.read_exact(&mut answer, deadline()).unwrap();
            assert_eq!(answer, [round; 16]);
        }
        guest.close(deadline()).unwrap();
    });
}

#[test]
fn much_data_goes_both_ways_at_once_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guest, mut mediator) = pair(directory.path());
    let data = bytes(20 << 20);
    let both_ways = |transport: &mut FileTransport| {
        let mut received = vec![0; data.len()];
        let (mut sent, mut filled) = (0, 0);
        while sent < data.len() || filled < data.len() {
            let n = transport.try_write(&data[sent..]).unwrap();
            sent += n;
            if sent == data.len() {
                transport.flush(deadline()).unwrap();
            }
            match transport.try_read(&mut received[filled..]).unwrap() {
                Some(m) => filled += m,
                None if n == 0 => {
                    let interest = if sent < data.len() {
                        Interest::ReadOrWrite
                    } else {
                        Interest::Read
                    };
                    transport.wait(interest, deadline()).unwrap();
                }
                None => {}
            }
        }
        assert!(received == data, "other bytes");
        transport.close(deadline()).unwrap();
    };
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| both_ways(&mut guest));
        both_ways(&mut mediator);
    });
    println!("20 MiB each way in {:?}", began.elapsed());
    drop((guest, mediator));
    assert_eq!(
        fs::read_dir(directory.path().join("sessions"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_side_that_is_dropped_is_told_from_one_that_closes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guest, mut mediator) = pair(directory.path());
    mediator.write_all(b"last words", deadline()).unwrap();
    mediator.flush(deadline()).unwrap();
    thread::sleep(Duration::from_millis(100));
    drop(mediator);
    let mut buffer = [0; 10];
    guest.read_exact(&mut buffer, deadline()).unwrap();
    assert_eq!(&buffer, b"last words");
    let mut end = [0; 1];
    assert!(matches!(
        guest.read_exact(&mut end, deadline()),
        Err(TransportError::Closed)
    ));
    assert!(matches!(guest.try_write(b"x"), Err(TransportError::Closed)));
}

#[test]
fn a_session_is_taken_once() {
    let directory = tempfile::tempdir().unwrap();
    let (guest, mediator) = pair(directory.path());
    let again = accept(
        directory.path(),
        None,
        session(directory.path()),
        8,
        SILENCE,
        deadline(),
    );
    let error = again.unwrap_err().to_string();
    assert!(error.contains("was taken before"), "{error}");
    drop((guest, mediator));
}

#[test]
fn a_directory_that_vanishes_is_an_error_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guest, mut mediator) = pair(directory.path());
    fs::rename(path(directory.path()), directory.path().join("away")).unwrap();
    for side in [&mut guest, &mut mediator] {
        let error = side.read_exact(&mut [0; 1], deadline()).unwrap_err();
        assert!(error.to_string().contains("directory is gone"), "{error}");
    }
}

#[test]
fn a_wait_whose_deadline_passes_looks_once_more() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guest, mut mediator) = pair(directory.path());
    let path = path(directory.path());
    // By then each looks twenty times a second.
    thread::sleep(Duration::from_secs(1));
    let mut counted = 0;
    for round in 1..=200u64 {
        let file = path.join(segment(Role::Mediator, Kind::Data, round));
        let until = Instant::now() + Duration::from_millis(20 + round % 50);
        mediator.write_all(b"x", deadline()).unwrap();
        let (waited, there_at) = thread::scope(|scope| {
            let wrote = scope.spawn(|| {
                // Just before the end, or on a busy machine just after it.
                let before = until - Duration::from_millis(10);
                thread::sleep(before.saturating_duration_since(Instant::now()));
                mediator.flush(deadline()).unwrap();
                while !file.exists() {
                    thread::sleep(Duration::from_micros(200));
                }
                Instant::now()
            });
            (guest.wait(Interest::Read, until), wrote.join().unwrap())
        });
        if there_at < until {
            counted += 1;
            waited.unwrap_or_else(|error| panic!("round {round}: {error}, and it lay there"));
        }
        guest.read_exact(&mut [0; 1], deadline()).unwrap();
        // So that looks become rare again.
        if counted >= 12 {
            break;
        }
        thread::sleep(Duration::from_millis(500));
    }
    assert!(counted >= 1, "no file came in time");
}

#[test]
fn where_nobody_serves_the_deadline_holds() {
    let directory = tempfile::tempdir().unwrap();
    let short = || Instant::now() + Duration::from_millis(300);
    let go = |path: &Path| connect(path, &Settings::default(), short(), &|| false).unwrap_err();
    let error = go(&directory.path().join("missing"));
    assert!(error.to_string().contains("No such file"), "{error}");
    let error = go(directory.path());
    assert!(
        error.advice().contains("vgpu-mediatord --listen file:"),
        "{error}"
    );
    fs::create_dir(directory.path().join("sessions")).unwrap();
    let error = go(directory.path());
    assert!(
        error.to_string().contains("no mediator has taken"),
        "{error}"
    );
    // Nothing is left for a mediator that starts later.
    assert_eq!(
        fs::read_dir(directory.path().join("sessions"))
            .unwrap()
            .count(),
        0
    );
    let error = connect(directory.path(), &Settings::default(), deadline(), &|| true).unwrap_err();
    assert!(error.is_interrupted());
}

#[test]
fn a_waker_ends_a_wait_and_so_does_whatever_the_other_side_does() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guest, mut mediator) = pair(directory.path());
    let waker = Waker::new().unwrap();
    let read = Some(Interest::Read);
    let patience = Duration::from_millis(50);
    for interest in [None, read] {
        let began = Instant::now();
        // As a thread leaves it that raises it late: after another has lowered it.
        nix::unistd::write(&waker, &1u64.to_ne_bytes()).unwrap();
        let waited = mediator.wait_or(interest, &waker, began + patience);
        assert!(matches!(waited, Err(TransportError::TimedOut(_))));
        assert!(began.elapsed() >= patience);
        let mut stale = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut stale, PollTimeout::ZERO),
            Ok(0),
            "it did not wait"
        );
        thread::scope(|scope| {
            scope.spawn(|| waker.raise());
            mediator.wait_or(interest, &waker, deadline()).unwrap();
        });
        assert!(waker.lower(), "it stays raised");
    }
    mediator
        .wait_or(Some(Interest::ReadOrWrite), &waker, deadline())
        .unwrap();
    assert_eq!(guest.try_write_parts(&[b"ab", b"", b"cde"]).unwrap(), 5);
    guest.flush(deadline()).unwrap();
    let mut got = [0; 5];
    let mut filled = 0;
    while filled < got.len() {
        match mediator.try_read(&mut got[filled..]).unwrap() {
            Some(n) => filled += n,
            None => mediator.wait_or(read, &waker, deadline()).unwrap(),
        }
    }
    assert_eq!(&got, b"abcde");
    drop(guest);
    let end = loop {
        match mediator.try_read(&mut got) {
            Ok(None) => mediator.wait_or(read, &waker, deadline()).unwrap(),
            end => break end,
        }
    };
    assert!(matches!(end, Err(TransportError::Closed)), "{end:?}");
}
