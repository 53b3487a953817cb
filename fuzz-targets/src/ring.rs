//! The channel against a peer that writes what it likes into the shared memory.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vchan::layout::{PAGE, RingSizes, Role};
use vchan::local::peer::{
    HELLO_BYTES, LyingPeer, Offer, Page, REPLY_BYTES, reencode_hello, reencode_reply, send_raw,
};
use vchan::shm::Region;
use vchan::{Channel, Error, PeerError, local};

use crate::input::Input;

/// The first two have their rings in the control page.
const SIZES: [(usize, usize); 4] = [(1024, 2048), (2048, 1024), (4096, 4096), (2048, 8192)];

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn sizes(choice: u8) -> RingSizes {
    let (client_to_server, server_to_client) = SIZES[usize::from(choice) % SIZES.len()];
    RingSizes {
        server_to_client,
        client_to_server,
    }
}

/// Writes anywhere into the control page, in one of three widths.
fn falsify(page: &Page, input: &mut Input<'_>) {
    let at = usize::from(input.u16()) % PAGE;
    match at % 3 {
        // Most of the page means nothing; half of the lies go where it does.
        0 => page.set_u8(at % 24, input.u8()),
        1 => page.set_u32(at % 24 / 4 * 4, input.u32()),
        _ => page.set_u32(at / 4 * 4, input.u32()),
    }
}

/// An offer whose message, memory and descriptors are not what they should be, and the two
/// messages alone.
pub(crate) fn rendezvous(data: &[u8]) {
    let mut input = Input::new(data);
    let hello: [u8; HELLO_BYTES] = input.array();
    let reply: [u8; REPLY_BYTES] = input.array();
    if let Ok(again) = reencode_hello(&hello) {
        assert_eq!(again, hello, "nothing in a hello is ignored");
    }
    if let Ok(again) = reencode_reply(&reply) {
        assert_eq!(again, reply, "nothing in a reply is ignored");
    }
    offered(&mut input);
}

/// A client that is made a false offer.
fn offered(input: &mut Input<'_>) {
    let mut offer = Offer::new(sizes(input.u8())).expect("an honest offer");
    let choice = input.u8();
    if choice & 1 != 0 {
        offer.hello[usize::from(input.u8()) % HELLO_BYTES] ^= input.u8();
    }
    while !input.is_empty() {
        falsify(&offer.page, input);
    }
    let fds = match choice >> 1 & 7 {
        0 => vec![offer.memory.as_fd(), offer.to_server.as_fd()],
        1 => vec![offer.to_server.as_fd(); 3],
        2 => vec![offer.memory.as_fd(); 3],
        _ => vec![
            offer.memory.as_fd(),
            offer.to_server.as_fd(),
            offer.to_client.as_fd(),
        ],
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    send_raw(&ours, &offer.hello, &fds, soon()).expect("room in an empty socket");
    match local::connect_on(theirs, soon()) {
        Ok(_) | Err(Error::Peer(_)) => {}
        Err(error) => panic!("a false offer led to {error:?}"),
    }
}

pub(crate) fn rendezvous_seeds() -> Vec<Vec<u8>> {
    let honest = Offer::new(sizes(2)).expect("an honest offer").hello;
    let seed = |tail: &[u8]| [&honest[..], &[0; REPLY_BYTES], tail].concat();
    vec![
        seed(&[2, 14]),
        seed(&[0, 15, 9, 1]),
        seed(&[1, 14, 16, 0, 20]),
    ]
}

/// A connected victim and the peer that will lie to it.
struct Stage {
    victim: Channel,
    peer: LyingPeer,
    role: Role,
    /// The first rule the victim saw broken.
    broken: Option<PeerError>,
    /// Where the victim reads and writes next, if that is known.
    read_at: u32,
    write_at: u32,
}

/// A history of lies, rings and calls. What is read is what lies in the ring where the victim's own
/// cursor stands, what is written changes these bytes only, and the first error stays.
pub(crate) fn control_page(data: &[u8]) {
    let mut input = Input::new(data);
    let Some(mut stage) = Stage::set(&mut input) else {
        return;
    };
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        stage.step(&mut input);
    }
}

impl Stage {
    fn set(input: &mut Input<'_>) -> Option<Self> {
        let choice = input.u8();
        let rings = sizes(choice >> 1);
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (role, mut victim, peer, start) = if choice & 1 == 0 {
            let offer = Offer::new(rings).expect("an honest offer");
            // Indexes that both rings start with; the peer may also leave something to read.
            let (left, right, unread) = (input.u32(), input.u32(), input.u16());
            use vchan::layout::offset;
            offer.page.set_u32(offset::LEFT_CONS, left);
            offer.page.set_u32(offset::LEFT_PROD, left);
            offer.page.set_u32(offset::RIGHT_CONS, right);
            let prod = right.wrapping_add(unread.into());
            offer.page.set_u32(offset::RIGHT_PROD, prod);
            offer.send(&ours, soon()).expect("room in an empty socket");
            let victim = match local::connect_on(theirs, soon()) {
                Ok(victim) => victim,
                Err(Error::Peer(_)) => return None,
                Err(error) => panic!("false indexes led to {error:?}"),
            };
            (Role::Client, victim, offer.into_peer(ours), (right, left))
        } else {
            let peer = std::thread::spawn(move || LyingPeer::connect(ours, soon()));
            let first = input.u32();
            let victim = local::serve_from_index(theirs, rings, first, soon());
            let victim = victim.expect("a peer that has not lied yet");
            let peer = peer.join().expect("no panic").expect("a victim");
            (Role::Server, victim, peer, (first, first))
        };
        victim.set_spin(Duration::ZERO);
        Some(Self {
            victim,
            peer,
            role,
            broken: None,
            read_at: start.0,
            write_at: start.1,
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let now = Instant::now();
        let outcome = match input.u8() % 16 {
            0..=3 => {
                falsify(&self.peer.page, input);
                Ok(())
            }
            4 | 5 => {
                self.move_honestly(input.u16());
                Ok(())
            }
            6 => {
                self.peer.ring();
                Ok(())
            }
            7 => self.read(input, |victim, buf| victim.read(buf, now).map(Some)),
            8 => self.read(input, Channel::try_read),
            9 => self.write(input, Channel::try_write),
            // How much was written before the time was up is not said.
            10 => self.write(input, |victim, buf| {
                let before = victim.stats().bytes_written;
                let outcome = victim.write_all(buf, now);
                let n = victim.stats().bytes_written - before;
                match outcome {
                    Ok(()) | Err(Error::TimedOut(_)) => Ok(usize::try_from(n).expect("small")),
                    Err(error) if n == 0 => Err(error),
                    Err(_) => Ok(usize::try_from(n).expect("small")),
                }
            }),
            11 => self.victim.available().map(|n| {
                assert!(n <= self.victim.incoming_ring_bytes());
            }),
            12 => self.victim.drain(now),
            13 => self.victim.peer_gone().map(drop),
            14 => {
                let (incoming, _) = self.rings();
                incoming.copy_in(usize::from(input.u8()), input.take(200));
                Ok(())
            }
            _ => self
                .victim
                .wait(vgpu_protocol::transport::Interest::ReadOrWrite, now),
        };
        self.judge(outcome);
    }

    fn judge(&mut self, outcome: vchan::Result<()>) {
        match outcome {
            Ok(()) | Err(Error::TimedOut(_) | Error::PeerClosed { .. }) => {}
            Err(Error::Peer(error)) => {
                let first = self.broken.get_or_insert_with(|| error.clone());
                assert_eq!(*first, error, "the first error stays");
            }
            Err(error) => panic!("lies led to {error:?}"),
        }
    }

    /// (what the victim reads, what it writes)
    fn rings(&self) -> (&Region, &Region) {
        match self.role {
            Role::Server => (&self.peer.left, &self.peer.right),
            Role::Client => (&self.peer.right, &self.peer.left),
        }
    }

    /// The peer says that it has written and read a little more.
    fn move_honestly(&mut self, by: u16) {
        use vchan::layout::offset;
        let (prod, cons) = match self.role {
            Role::Server => (offset::LEFT_PROD, offset::RIGHT_CONS),
            Role::Client => (offset::RIGHT_PROD, offset::LEFT_CONS),
        };
        let at = if by & 1 == 0 { prod } else { cons };
        let page = &self.peer.page;
        page.set_u32(at, page.u32(at).wrapping_add((by >> 1).into()));
    }

    fn read(
        &mut self,
        input: &mut Input<'_>,
        call: impl FnOnce(&mut Channel, &mut [u8]) -> vchan::Result<Option<usize>>,
    ) -> vchan::Result<()> {
        let mut buf = vec![0; usize::from(input.u16()) % 10_000];
        let n = call(&mut self.victim, &mut buf)?.unwrap_or(0);
        let (ring, _) = self.rings();
        assert!(n <= ring.len(), "more was read than a ring holds");
        let there = contents(ring);
        for (i, &byte) in buf[..n].iter().enumerate() {
            assert_eq!(byte, there[(self.read_at as usize + i) % there.len()]);
        }
        self.read_at = self.read_at.wrapping_add(u32::try_from(n).expect("small"));
        Ok(())
    }

    fn write(
        &mut self,
        input: &mut Input<'_>,
        call: impl FnOnce(&mut Channel, &[u8]) -> vchan::Result<usize>,
    ) -> vchan::Result<()> {
        let len = usize::from(input.u16()) % 10_000;
        let fill = input.u8();
        let buf: Vec<u8> = (0..=250).cycle().map(|i| fill ^ i).take(len).collect();
        let mut expected = contents(self.rings().1);
        let n = call(&mut self.victim, &buf)?;
        assert!(n <= expected.len(), "more was written than a ring holds");
        for (i, &byte) in buf[..n].iter().enumerate() {
            let size = expected.len();
            expected[(self.write_at as usize + i) % size] = byte;
        }
        assert!(
            contents(self.rings().1) == expected,
            "a write changes the bytes at the write index and no others"
        );
        self.write_at = self.write_at.wrapping_add(u32::try_from(n).expect("small"));
        Ok(())
    }
}

fn contents(ring: &Region) -> Vec<u8> {
    let mut bytes = vec![0; ring.len()];
    ring.copy_out(0, &mut bytes);
    bytes
}

pub(crate) fn control_page_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for choice in 0..8 {
        let mut seed = vec![choice];
        seed.extend([0; 10]);
        // Write, say it was read; say something was written, read it; wait and drain.
        seed.extend([
            9, 0, 1, 7, 4, 1, 2, 4, 0, 2, 8, 0, 1, 7, 9, 0, 10, 0, 9, 5, 6, 15, 12,
        ]);
        seeds.push(seed);
    }
    seeds
}
