//! The end of a stream, complete or not, as the other side sees it.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vchan::{Channel, Format, PeerEnd, Setup, local};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn pair(format: Format) -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let setup = Setup::new().format(format);
    let server = thread::spawn(move || local::serve_with(&setup, one, 4096, soon()).unwrap());
    let client = local::connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

/// The other side's view after `end` has ended this one, from either role.
fn seen_after(format: Format, end: impl Fn(Channel)) -> [PeerEnd; 2] {
    let outcome = |(mut one, mut other): (Channel, Channel)| {
        one.write_all(b"last words", soon()).unwrap();
        assert_eq!(other.peer_end().unwrap(), PeerEnd::Open);
        let mut buf = [0; 10];
        other.read_exact(&mut buf, soon()).unwrap();
        end(one);
        assert_eq!(other.read(&mut buf, soon()).unwrap(), 0);
        other.peer_end().unwrap()
    };
    let (server, client) = pair(format);
    [outcome(pair(format)), outcome((client, server))]
}

#[test]
fn a_close_is_told_from_an_end_without_one() {
    let close = |mut channel: Channel| channel.close(soon()).unwrap();
    let close_half = |channel: Channel| {
        let (_reader, writer) = channel.split().unwrap();
        writer.close(soon()).unwrap();
    };
    let abandon = |channel: Channel| {
        let (_reader, mut writer) = channel.split().unwrap();
        writer.abandon();
    };
    for (format, closed, gone) in [
        (Format::Extended, PeerEnd::Closed, PeerEnd::Gone),
        (
            Format::Classic,
            PeerEnd::ClosedOrGone,
            PeerEnd::ClosedOrGone,
        ),
    ] {
        assert_eq!(seen_after(format, close), [closed; 2]);
        assert_eq!(seen_after(format, close_half), [closed; 2]);
        assert_eq!(seen_after(format, drop), [gone; 2]);
        assert_eq!(seen_after(format, abandon), [gone; 2]);
    }
}
