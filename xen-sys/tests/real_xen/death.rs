//! Unmap notifications: on a drop, and when a process is killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use xen_sys::{Access, GrantRef, Port, Provider, UnmapNotify};

use crate::support::{bound_pair, drain, next_event, own_domain, peek, poke, soon, wait_for_byte};

/// The bytes that libxenvchan uses: the client's and the server's.
const CLIENT_LIVE: u16 = 20;
const SERVER_LIVE: u16 = 21;

fn notify(byte: u16, port: Port) -> Option<UnmapNotify> {
    Some(UnmapNotify {
        clear_byte: Some(byte),
        send_event: Some(port),
    })
}

pub(crate) fn dropping_the_mapping_notifies_the_owner(granting: Provider, mapping: Provider) {
    let pair = bound_pair(granting, mapping);
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, None)
        .expect("share");
    let wanted = notify(CLIENT_LIVE, pair.client_port);
    let theirs = map
        .map(own_domain(), ours.refs(), Access::ReadWrite, wanted, soon())
        .expect("map");
    poke(ours.as_ptr(), CLIENT_LIVE.into(), 1);
    poke(ours.as_ptr(), SERVER_LIVE.into(), 1);
    drop(theirs);
    assert_eq!(next_event(&*pair.server), pair.server_port);
    wait_for_byte(ours.as_ptr(), CLIENT_LIVE.into(), 0);
    assert_eq!(
        peek(ours.as_ptr(), SERVER_LIVE.into()),
        1,
        "only the one byte"
    );
}

pub(crate) fn dropping_the_grant_notifies_the_client(granting: Provider, mapping: Provider) {
    let pair = bound_pair(granting, mapping);
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let wanted = notify(SERVER_LIVE, pair.server_port);
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, wanted)
        .expect("share");
    let theirs = map
        .map(own_domain(), ours.refs(), Access::ReadWrite, None, soon())
        .expect("map");
    poke(theirs.as_ptr(), SERVER_LIVE.into(), 1);
    drop(ours);
    assert_eq!(next_event(&*pair.client), pair.client_port);
    wait_for_byte(theirs.as_ptr(), SERVER_LIVE.into(), 0);
}

pub(crate) fn a_notification_can_do_one_thing_only(granting: Provider, mapping: Provider) {
    let pair = bound_pair(granting, mapping);
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    // An event without a byte, on a read-only mapping.
    let event_only = Some(UnmapNotify {
        clear_byte: None,
        send_event: Some(pair.client_port),
    });
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, None)
        .expect("share");
    poke(ours.as_ptr(), 0, 1);
    let theirs = map
        .map(
            own_domain(),
            ours.refs(),
            Access::ReadOnly,
            event_only,
            soon(),
        )
        .expect("map");
    drop(theirs);
    assert_eq!(next_event(&*pair.server), pair.server_port);
    pair.server.unmask(pair.server_port).expect("unmask");
    assert_eq!(peek(ours.as_ptr(), 0), 1, "no byte was to be cleared");
    // A byte without an event.
    let byte_only = Some(UnmapNotify {
        clear_byte: Some(0),
        send_event: None,
    });
    let theirs = map
        .map(
            own_domain(),
            ours.refs(),
            Access::ReadWrite,
            byte_only,
            soon(),
        )
        .expect("map");
    drop(theirs);
    wait_for_byte(ours.as_ptr(), 0, 0);
    assert_eq!(
        pair.server.pending().expect("pending"),
        None,
        "no event was to be sent"
    );
}

pub(crate) fn a_foreign_port_cannot_be_notified(granting: Provider, mapping: Provider) {
    let share = granting.open_grant_share().expect("open");
    let map = mapping.open_grant_map().expect("open");
    let wanted = notify(SERVER_LIVE, Port(4000));
    let error = share
        .share(own_domain(), 1, Access::ReadWrite, wanted)
        .map(|_| ())
        .unwrap_err();
    assert!(
        error.hint().is_some_and(|hint| hint.contains("bound")),
        "{error}"
    );
    let ours = share
        .share(own_domain(), 1, Access::ReadWrite, None)
        .expect("share");
    map.map(own_domain(), ours.refs(), Access::ReadWrite, wanted, soon())
        .map(|_| ())
        .unwrap_err();
}

/// Another process of this program, in one of the two roles below. It is killed on drop.
struct Peer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    input: ChildStdin,
}

impl Peer {
    fn start(role: &str, provider: Provider) -> Self {
        let program = std::env::current_exe().expect("own path");
        let mut child = Command::new(program)
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "death::in_another_process",
            ])
            .env("XEN_SYS_TEST_ROLE", role)
            .env("XEN_SYS_PROVIDER", provider.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the other process");
        let lines = BufReader::new(child.stdout.take().expect("stdout"));
        let input = child.stdin.take().expect("stdin");
        Self {
            child,
            lines,
            input,
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the other process listens");
    }

    /// The numbers of the next line that starts with `peer:`.
    fn numbers(&mut self) -> Vec<u32> {
        let mut line = String::new();
        loop {
            line.clear();
            let length = self.lines.read_line(&mut line).expect("a line");
            assert_ne!(length, 0, "the other process ended");
            // The test harness may have written something before it on the line.
            if let Some((_, numbers)) = line.split_once("peer:") {
                return numbers
                    .split_whitespace()
                    .map(|number| number.parse().expect("a number"))
                    .collect();
            }
        }
    }

    /// SIGKILL: the process cannot clean up.
    fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn a_killed_client_is_noticed(granting: Provider, mapping: Provider) {
    let own = own_domain();
    let events = granting.open_event_channels().expect("open");
    let port = events.bind_unbound(own).expect("bind_unbound");
    let share = granting.open_grant_share().expect("open");
    let ours = share.share(own, 1, Access::ReadWrite, None).expect("share");
    let mut peer = Peer::start("client", mapping);
    peer.say(&format!("{} {port}", ours.refs()[0]));
    peer.numbers();
    wait_for_byte(ours.as_ptr(), CLIENT_LIVE.into(), 1);
    drain(&*events);
    peer.kill();
    assert_eq!(next_event(&*events), port);
    wait_for_byte(ours.as_ptr(), CLIENT_LIVE.into(), 0);
}

pub(crate) fn a_killed_owner_is_noticed(granting: Provider, mapping: Provider) {
    let own = own_domain();
    let mut peer = Peer::start("owner", granting);
    let numbers = peer.numbers();
    let (gref, remote) = (GrantRef(numbers[0]), Port(numbers[1]));
    let events = mapping.open_event_channels().expect("open");
    let port = events
        .bind_interdomain(own, remote)
        .expect("bind_interdomain");
    let map = mapping.open_grant_map().expect("open");
    let theirs = map
        .map(own, &[gref], Access::ReadWrite, None, soon())
        .expect("map");
    assert_eq!(peek(theirs.as_ptr(), SERVER_LIVE.into()), 1);
    drain(&*events);
    peer.kill();
    assert_eq!(next_event(&*events), port);
    wait_for_byte(theirs.as_ptr(), SERVER_LIVE.into(), 0);
}

/// The other process's part. Run as a test by itself it has no role and does nothing.
#[test]
#[ignore = "needs Xen: run by cargo xtask lab test"]
fn in_another_process() {
    let Ok(role) = std::env::var("XEN_SYS_TEST_ROLE") else {
        return;
    };
    let own = own_domain();
    let provider = Provider::from_env().expect("provider");
    let events = provider.open_event_channels().expect("open");
    if role == "owner" {
        let port = events.bind_unbound(own).expect("bind_unbound");
        let share = provider.open_grant_share().expect("open");
        let wanted = notify(SERVER_LIVE, port);
        let ours = share
            .share(own, 1, Access::ReadWrite, wanted)
            .expect("share");
        poke(ours.as_ptr(), SERVER_LIVE.into(), 1);
        println!("peer: {} {port}", ours.refs()[0]);
        wait_to_be_killed();
    } else {
        let mut line = String::new();
        std::io::stdin()
            .read_line(&mut line)
            .expect("reference and port");
        let mut numbers = line
            .split_whitespace()
            .map(|n| n.parse::<u32>().expect("a number"));
        let (gref, remote) = (
            numbers.next().expect("reference"),
            numbers.next().expect("port"),
        );
        let port = events
            .bind_interdomain(own, Port(remote))
            .expect("bind_interdomain");
        let map = provider.open_grant_map().expect("open");
        let wanted = notify(CLIENT_LIVE, port);
        let theirs = map
            .map(own, &[GrantRef(gref)], Access::ReadWrite, wanted, soon())
            .expect("map");
        poke(theirs.as_ptr(), CLIENT_LIVE.into(), 1);
        println!("peer: 0");
        wait_to_be_killed();
    }
}

/// Keeps the mappings of the caller alive; the other process kills this one long before the end.
fn wait_to_be_killed() {
    std::thread::sleep(Duration::from_secs(300));
    panic!("nobody killed this process");
}
