//! A shared region whose ticket, header page and descriptors are forged.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vchan::layout::PAGE;
use vchan::region::{Access, Carrier, TICKET_BYTES, Ticket};
use vchan::{Error, RingSizes, local};
use vchan_testing::peer::{LyingPeer, Offer, send_raw};

use crate::input::Input;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A ticket, the start of a header page, and then calls on the mapped region: each succeeds within
/// the ticket's length and fails beyond it.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let ticket: [u8; TICKET_BYTES] = input.array();
    let Ok(decoded) = Ticket::decode(&ticket) else {
        return;
    };
    assert_eq!(decoded.encode(), ticket, "nothing in a ticket is ignored");
    if decoded.carrier != Carrier::Descriptors {
        return;
    }
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let peer = thread::spawn(move || LyingPeer::connect(ours, soon()));
    let victim = local::serve_on(theirs, 4096, soon()).expect("a peer that has not lied yet");
    let peer = peer.join().expect("no panic").expect("a victim");

    // Two sealed memories, of one page and of three.
    let small = Offer::new(1024.into()).expect("an honest offer");
    let header = Offer::new(RingSizes {
        server_to_client: 2048,
        client_to_server: 1024,
    });
    let header = header.expect("an honest offer");
    let choice = input.u8();
    header.page.set_bytes(0, &ticket);
    header
        .page
        .set_bytes(TICKET_BYTES, &[0; 256 - TICKET_BYTES]);
    header.page.set_u8(64, 1);
    header.page.set_u8(128, 2);
    for _ in 0..choice & 7 {
        header.page.set_u8(input.u8().into(), input.u8());
    }
    let fds = match choice >> 3 & 3 {
        0 => vec![small.memory.as_fd(), header.memory.as_fd()],
        1 => vec![header.memory.as_fd()],
        _ => vec![header.memory.as_fd(), small.memory.as_fd()],
    };
    send_raw(&peer.stream, &ticket, &fds, soon()).expect("room in an empty socket");
    let mut mapped = match victim.map_region(&ticket, Instant::now()) {
        Ok(mapped) => mapped,
        Err(Error::Region(_) | Error::Peer(_) | Error::TimedOut(_)) => return,
        Err(error) => panic!("a false region led to {error:?}"),
    };
    assert_eq!(mapped.len() as u64, decoded.length);
    assert!(decoded.pages() * PAGE >= mapped.len());
    while !input.is_empty() {
        let (at, len) = (usize::from(input.u16()), usize::from(input.u16()));
        // Half of the offsets are near the end.
        let at = match at & 1 {
            0 => at,
            _ => mapped.len().wrapping_sub(at >> 4),
        };
        let inside = at.checked_add(len).is_some_and(|end| end <= mapped.len());
        let mut buf = vec![0; len];
        let revoked = matches!(mapped.read_at(0, &mut []), Err(Error::Region(_)));
        assert!(inside || mapped.read_at(at, &mut buf).is_err());
        assert!(revoked || !inside || mapped.read_at(at, &mut buf).is_ok());
        let wrote = mapped.write_at(at, &buf).is_ok();
        assert!(!wrote || inside && decoded.access != Access::PeerReads);
        assert!(mapped.view(at, len).is_err() || inside);
        let word = at.is_multiple_of(8) && at.checked_add(8).is_some_and(|end| end <= mapped.len());
        assert!(mapped.load_u64(at).is_err() || word);
        assert!(mapped.store_u64(at, 1).is_err() || word);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for access in [Access::PeerReads, Access::PeerWrites, Access::Both] {
        let ticket = Ticket {
            id: 1,
            nonce: *b"0123456789abcdef",
            length: 4000,
            access,
            carrier: Carrier::Descriptors,
        };
        seeds.push([&ticket.encode()[..], &[16, 0, 0, 16, 0, 161, 15, 8, 0]].concat());
        let grants = Ticket {
            carrier: Carrier::Grants { header: 5 },
            ..ticket
        };
        seeds.push(grants.encode().to_vec());
    }
    seeds
}
