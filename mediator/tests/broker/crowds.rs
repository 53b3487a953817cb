//! Those who come too often, from too many places or under too many names, and what is left for the
//! others meanwhile.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use vgpu_guest::{Client, Endpoint};

use crate::support::sockets::Sockets;
use crate::support::{Mediator, add, only_ours_to_change, wait_until};

/// Processes that an account may start at once, and in a second.
const BURST: u64 = 16;
const A_SECOND: u64 = 2;

/// A connection from this address of this machine.
fn from(source: Ipv4Addr, to: SocketAddrV4) -> Option<TcpStream> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    // Thousands come and go, each from a port of its own.
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    bind(
        fd.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(source, 0)),
    )
    .unwrap();
    connect(fd.as_raw_fd(), &SockaddrIn::from(to)).ok()?;
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    Some(stream)
}

fn tcp_address(sockets: &Sockets) -> SocketAddrV4 {
    match sockets.address().to_socket_addrs().unwrap().next() {
        Some(SocketAddr::V4(address)) => address,
        other => panic!("{other:?}"),
    }
}

/// Keeps this many silent connections from each of these addresses standing until `stop`: one that the
/// mediator closes is replaced.
fn crowd(to: SocketAddrV4, sources: &[Ipv4Addr], of_each: usize, stop: &AtomicBool) {
    let mut connections: Vec<(Ipv4Addr, Option<TcpStream>)> = sources
        .iter()
        .flat_map(|source| (0..of_each).map(|_| (*source, from(*source, to))))
        .collect();
    while !stop.load(Ordering::Relaxed) {
        for (source, connection) in &mut connections {
            let open = connection.as_ref().is_some_and(|it| {
                matches!(it.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            });
            if !open {
                *connection = from(*source, to);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Sets the flag when dropped, so that a test that fails ends.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries this many times to get in with a secret, while a crowd from these addresses stands at the door.
fn everybody_with_a_secret_gets_in(sources: std::ops::Range<u8>, tries: usize) {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let config = directory.path().join("m.toml");
    // Silence is not what makes room.
    fs::write(&config, "[limits]\nconnect_timeout_s = 600\n").unwrap();
    let mediator = sockets.start(&["--config", config.to_str().unwrap()]);
    let sources: Vec<Ipv4Addr> = sources.map(|host| Ipv4Addr::new(127, 0, 0, host)).collect();
    let to = tcp_address(&sockets);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| crowd(to, &sources, 72, &stop));
        let places = 32.min(8 * sources.len());
        wait_until("the crowd has all the places that it gets", || {
            mediator.workers().len() >= places
        });
        for n in 0..tries {
            let options = sockets.options_of(["tester", "other"][n % 2]);
            let client = Client::connect(&[sockets.tcp()], &options);
            let mut client = client.unwrap_or_else(|error| panic!("try {n}: {error}"));
            add(&mut client, 16).unwrap();
            client.goodbye().unwrap();
        }
        assert!(mediator.workers().len() >= places - 8, "the crowd stands");
        assert!(mediator.workers().len() <= 32 + 2, "processes are bounded");
    });
    mediator.stop();
}

#[test]
fn crowds_from_two_addresses_keep_nobody_out() {
    everybody_with_a_secret_gets_in(2..4, 100);
}

#[test]
fn crowds_from_so_many_addresses_that_all_places_are_taken_keep_nobody_out() {
    everybody_with_a_secret_gets_in(2..10, 20);
}

/// How many workers the mediator has started up to now.
fn started(mediator: &Mediator) -> u64 {
    let client = mediator.connect().unwrap();
    let status = mediator.status();
    let sessions = status["sessions"].as_array().unwrap();
    let ids = sessions
        .iter()
        .map(|session| session["session"].as_u64().unwrap());
    let newest = ids.max().unwrap();
    client.goodbye().unwrap();
    newest - 1
}

/// Checks how many workers somebody has made the mediator start since `began`, of `others` at least.
fn assert_paced(mediator: &Mediator, began: Instant, others: u64) {
    let started = started(mediator);
    let most = BURST + A_SECOND * (began.elapsed().as_secs() + 1) + others;
    println!("{started} workers in {:?}", began.elapsed());
    assert!(started >= BURST / 2, "only {started}");
    assert!(started <= most, "{started} of {most} workers");
}

/// For how long somebody tries.
const TRYING: Duration = Duration::from_secs(4);

/// The one of another user who connects and connects, in a process of its own: this program, told by
/// an environment variable to run this one test.
#[test]
fn somebody_who_connects_and_connects() {
    let Some(path) = std::env::var_os("VGPU_TEST_SOCKET") else {
        return;
    };
    let began = Instant::now();
    while began.elapsed() < TRYING {
        drop(UnixStream::connect(&path));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_user_starts_so_many_workers_over_unix_sockets_and_no_more() {
    if !nix::unistd::Uid::effective().is_root() {
        test_skip::skipped("only root can run a process of another user");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&["--allow-all"]);
    let began = Instant::now();
    let paths = [mediator.endpoint(), sockets.unix()];
    let others: Vec<_> = paths
        .iter()
        .map(|endpoint| {
            let (Endpoint::Local(path) | Endpoint::Unix(path)) = endpoint else {
                panic!("{endpoint}");
            };
            // By this name it can be run also where its path cannot be walked.
            let mut command = Command::new("/proc/self/exe");
            command
                .args(["--exact", "crowds::somebody_who_connects_and_connects"])
                .env("VGPU_TEST_SOCKET", path)
                .current_dir("/")
                .uid(65534)
                .gid(65534)
                .stdin(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    // Root is served meanwhile, and does not wait.
    let mut client = mediator.connect().unwrap();
    add(&mut client, 1000).unwrap();
    for mut other in others {
        assert!(other.wait().unwrap().success());
    }
    assert_paced(&mediator, began, 2);
    client.goodbye().unwrap();
    mediator.stop();
}

#[test]
fn a_client_with_a_secret_starts_so_many_workers_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let mediator = sockets.start(&[]);
    let began = Instant::now();
    while began.elapsed() < TRYING {
        sockets.connect(&sockets.tcp()).unwrap().goodbye().unwrap();
    }
    // What its account owes is counted by places of its source, of which there are eight.
    assert_paced(&mediator, began, 8);
    mediator.stop();
}

#[test]
fn a_directory_starts_so_many_workers_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let guest = served.join("web-1");
    fs::create_dir_all(&guest).unwrap();
    only_ours_to_change(&served);
    let listen = format!("file:{}", served.display());
    let mediator = Mediator::start(directory.path(), &["--listen", &listen]);
    wait_until("it is served", || guest.join("sessions").exists());
    let began = Instant::now();
    for number in 0..300 {
        let session = guest.join(format!("sessions/{number:032x}"));
        // Seen as a session that begins, and at the first look into it over: its worker ends at once.
        fs::create_dir_all(session.join("g-beat-0000000000000001")).unwrap();
    }
    // Another guest's work goes on.
    let mut client = mediator.connect().unwrap();
    while began.elapsed() < TRYING {
        add(&mut client, 1000).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    client.goodbye().unwrap();
    assert_paced(&mediator, began, 3);
    mediator.stop();
}

#[test]
fn whoever_may_write_into_a_directory_makes_no_guests_up() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    fs::create_dir(&served).unwrap();
    fs::set_permissions(&served, Permissions::from_mode(0o777)).unwrap();
    for number in 0..500 {
        fs::create_dir(served.join(format!("guest-{number}"))).unwrap();
    }
    let listen = format!("file:{}", served.display());
    let mediator = Mediator::start(directory.path(), &["--listen", &listen]);
    wait_until("it is said", || {
        mediator.log().contains("are not served as guests'")
    });
    // A few more looks.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(mediator.workers().len(), 1, "the one of the directory");
    assert!(!mediator.log().contains("guest-0: "), "{}", mediator.log());
    assert!(mediator.log().lines().count() < 20, "{}", mediator.log());
    // The directory itself is served, and so is a guest once the admin has seen to it.
    let command = served.join("command.txt");
    fs::write(&command, "1\n").unwrap();
    wait_until("a command runs", || {
        let answer = fs::read_to_string(served.join("response.txt"));
        answer.is_ok_and(|answer| answer.starts_with("1:"))
    });
    only_ours_to_change(&served);
    wait_until("guests are found", || {
        mediator.log().contains("/guest-0: session")
    });
    mediator.stop();
}

#[test]
fn many_guests_directories_fill_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    fs::create_dir(&served).unwrap();
    only_ours_to_change(&served);
    for number in 0..500 {
        fs::create_dir(served.join(format!("guest-{number}"))).unwrap();
    }
    let listen = format!("file:{}", served.display());
    let began = Instant::now();
    let mediator = Mediator::start(directory.path(), &["--listen", &listen]);
    wait_until("some are not served", || {
        mediator.log().contains("limits.max_file_guests is 32")
    });
    thread::sleep(Duration::from_secs(4));
    let lines = mediator.log().lines().count() as u64;
    // Forty at once and four a second by one road, and lines that say how many were suppressed.
    let most = 2 * (40 + 4 * (began.elapsed().as_secs() + 1)) + 10;
    assert!(lines <= most, "{lines} of {most} lines");
    assert!(mediator.log().contains(" lines suppressed"));
    assert!(mediator.workers().len() <= 33);
    mediator.stop();
}

/// Puts a file in place of the sessions again and again, which the worker complains about each time.
fn annoy(place: &Path) {
    let sessions = place.join("sessions");
    let began = Instant::now();
    while began.elapsed() < TRYING {
        let _ = fs::remove_dir_all(&sessions);
        let _ = fs::write(&sessions, "");
        thread::sleep(Duration::from_millis(60));
        let _ = fs::remove_file(&sessions);
        let _ = fs::create_dir(&sessions);
        thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn what_a_worker_logs_about_its_guest_is_limited_with_everything_else() {
    let directory = tempfile::tempdir().unwrap();
    let served = directory.path().join("served");
    let guest = served.join("web-1");
    fs::create_dir_all(&guest).unwrap();
    only_ours_to_change(&served);
    let listen = format!("file:{}", served.display());
    let began = Instant::now();
    let mediator = Mediator::start(directory.path(), &["--listen", &listen]);
    wait_until("it is served", || guest.join("sessions").exists());
    annoy(&guest);
    let log = || mediator.log();
    let name = format!("file:{}/web-1: ", served.display());
    assert!(
        log().contains(&format!("{name}no sessions in ")),
        "{}",
        log()
    );
    wait_until("it is said how many lines there were", || {
        log()
            .lines()
            .any(|line| line.contains(&name) && line.ends_with(" lines suppressed"))
    });
    let lines = log().lines().filter(|line| line.contains("web-1")).count() as u64;
    // Ten at once, one a second, and as many that say how many were suppressed.
    let most = 2 * (10 + began.elapsed().as_secs() + 1);
    assert!(lines <= most, "{lines} of {most} lines");
    mediator.stop();
}
