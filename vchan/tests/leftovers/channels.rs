//! Descriptors and mappings while many channels, good and bad, are open, and afterwards.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use vchan::local::{connect_on, connect_on_reactor, serve_on, serve_on_reactor};
use vchan::reactor::Reactor;
use vchan_testing::peer::{LyingPeer, Offer, send_raw};

use crate::liar::soon;
use crate::{alone, assert_nothing_left, held, settled};

fn connect_and_close(how: usize) {
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_on(one, 64 << 10, soon()).unwrap());
    let mut client = connect_on(other, soon()).unwrap();
    let mut server = server.join().unwrap();
    server.write_all(b"not read by all", soon()).unwrap();
    match how % 4 {
        0 => drop(client),
        1 => drop(server),
        2 => {
            // Splitting adds a descriptor.
            let (reader, writer) = client.split().unwrap();
            drop(reader);
            let _ = writer.close(soon());
            drop(server);
        }
        _ => {
            client.read(&mut [0; 64], soon()).unwrap();
            server.close(soon()).unwrap();
            client.close(soon()).unwrap();
        }
    }
}

fn be_refused() {
    let offer = Offer::new(4096.into()).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let fds = [
        offer.memory.as_fd(),
        offer.to_server.as_fd(),
        offer.memory.as_fd(),
    ];
    send_raw(&far, &offer.hello, &fds, soon()).unwrap();
    connect_on(near, soon()).unwrap_err();
    // More than any message carries: those that came along must be closed again.
    let (near, far) = UnixStream::pair().unwrap();
    let many = [offer.memory.as_fd(); 9];
    send_raw(&far, &offer.hello, &many, soon()).unwrap();
    connect_on(near, soon()).unwrap_err();
    let (near, far) = UnixStream::pair().unwrap();
    let answering = thread::spawn(move || {
        send_raw(&far, &[0; 16], &[offer.memory.as_fd(); 5], soon()).unwrap();
        (far, offer)
    });
    serve_on(near, 4096, soon()).unwrap_err();
    answering.join().unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let at_once = Instant::now();
    serve_on(near, 4096, at_once).unwrap_err();
}

/// Neither a child nor a program it starts inherits the channel: `MADV_DONTFORK` on every mapping,
/// `O_CLOEXEC` on every descriptor.
#[test]
fn case_34_fork_and_exec_inherit_nothing() {
    let _alone = alone();
    let (one, other) = UnixStream::pair().unwrap();
    let before = settled();
    let server = thread::spawn(move || serve_on(one, 64 << 10, soon()).unwrap());
    let client = connect_on(other, soon()).unwrap();
    let server = server.join().unwrap();
    assert!(held().0 > before.0 && held().1 > before.1);
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut mapping = "";
    let mut checked = 0;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if mapping.contains("memfd:vchan") {
                assert!(
                    flags.split_whitespace().any(|flag| flag == "dc"),
                    "copied by fork: {line}"
                );
                checked += 1;
            }
        } else if !line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.ends_with(':'))
        {
            mapping = line;
        }
    }
    assert!(checked >= 2, "only {checked} mappings found");
    // O_CLOEXEC is 02000000 in octal.
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", entry.file_name().display()));
        let Ok(link) = link.map(|link| link.display().to_string()) else {
            continue;
        };
        if !["memfd:vchan", "eventfd", "eventpoll", "socket:"]
            .iter()
            .any(|kind| link.contains(kind))
        {
            continue;
        }
        let info = std::fs::read_to_string(entry.path()).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap()
            .trim();
        let flags = u32::from_str_radix(flags, 8).unwrap();
        assert!(
            flags & 0o2_000_000 != 0,
            "{link} would be inherited by exec"
        );
    }
    drop((server, client));
}

/// A peer that keeps its mapping keeps no mapping of ours.
#[test]
fn case_39_peer_never_unmaps() {
    let _alone = alone();
    let before = settled();
    let keepers: Vec<LyingPeer> = (0..50)
        .map(|_| {
            let (one, other) = UnixStream::pair().unwrap();
            let keeper = thread::spawn(move || LyingPeer::connect(other, soon()).unwrap());
            drop(serve_on(one, 64 << 10, soon()).unwrap());
            keeper.join().unwrap()
        })
        .collect();
    // Its mapping, its two doorbells and its end of the socket.
    assert_eq!(held(), (before.0 + 3 * 50, before.1 + 50));
    drop(keepers);
    assert_nothing_left(before);
}

#[test]
fn three_hundred_channels_leave_nothing_behind() {
    let _alone = alone();
    connect_and_close(0);
    let before = settled();
    for round in 0..300 {
        connect_and_close(round);
        be_refused();
    }
    assert_nothing_left(before);
}

/// One handle for all: four descriptors for the reactor, three for each channel.
#[test]
fn a_channel_on_a_reactor_takes_no_epoll_descriptor() {
    let epolls = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy() == "anon_inode:[eventpoll]")
            .count()
    };
    let _alone = alone();
    let before = epolls();
    let reactor = Reactor::new().unwrap();
    let pairs: Vec<_> = (0..150)
        .map(|_| {
            let (one, other) = UnixStream::pair().unwrap();
            thread::scope(|scope| {
                let handle = reactor.handle();
                let client = scope.spawn(|| connect_on_reactor(handle, other, soon()).unwrap());
                let server = serve_on_reactor(handle, one, 4096, soon()).unwrap();
                (server, client.join().unwrap())
            })
        })
        .collect();
    assert!(epolls() < before + 150, "{before} and then {}", epolls());
    assert_eq!(reactor.handle().len(), 300);
    drop(pairs);
    assert!(reactor.handle().is_empty());
}
