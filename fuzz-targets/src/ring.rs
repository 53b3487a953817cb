//! The channel against a peer that writes anything into the shared memory.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vchan::layout::{Format, PAGE, RingSizes, Role};
use vchan::shm::Region;
use vchan::{Channel, Error, PeerError, extension, local};
use vchan_testing::peer::{
    HELLO_BYTES, LyingPeer, Offer, Page, REPLY_BYTES, reencode_hello, reencode_reply, send_raw,
};

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

/// Writes anywhere into the control page, or into the extension page if there is one.
fn falsify(control: &Page, extension: Option<&Page>, input: &mut Input<'_>) {
    let choice = input.u16();
    let at = usize::from(choice) % PAGE;
    match extension {
        // Most of a page has no meaning; two thirds of the lies go to fields that have.
        Some(page) if choice & 0x8000 != 0 => match at % 3 {
            0 => page.set_u8(at % 160, input.u8()),
            1 => page.set_u32(extension::offset::LEFT_PROD + at % 8 * 128, input.u32()),
            _ => page.set_u32(at / 4 * 4, input.u32()),
        },
        _ => match at % 3 {
            0 => control.set_u8(at % 24, input.u8()),
            1 => control.set_u32(at % 24 / 4 * 4, input.u32()),
            _ => control.set_u32(at / 4 * 4, input.u32()),
        },
    }
}

/// An offer with a wrong message, memory and descriptors, and the two messages alone.
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

/// A client that receives a false offer.
fn offered(input: &mut Input<'_>) {
    let (rings, choice) = (sizes(input.u8()), input.u8());
    let offer = match choice & 16 {
        0 => Offer::new(rings),
        _ => Offer::extended(rings),
    };
    let mut offer = offer.expect("an honest offer");
    if choice & 1 != 0 {
        offer.hello[usize::from(input.u8()) % HELLO_BYTES] ^= input.u8();
    }
    while !input.is_empty() {
        falsify(&offer.page, offer.extension.as_ref(), input);
    }
    let fds = match choice >> 1 & 7 {
        0 => vec![offer.memory.as_fd(), offer.to_server.as_fd()],
        1 => vec![offer.to_server.as_fd(); 3],
        2 => vec![offer.memory.as_fd(); 3],
        _ => vec![
            offer.memory.as_fd(),
            offer.to_server.as_fd(),
            offer.from_server.as_fd(),
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
    let honest = Offer::extended(sizes(2)).expect("an honest offer").hello;
    let seed = |tail: &[u8]| [&honest[..], &[0; REPLY_BYTES], tail].concat();
    vec![
        seed(&[2, 14]),
        seed(&[2, 30]),
        seed(&[0, 15, 9, 1]),
        seed(&[1, 14, 16, 0, 20]),
        seed(&[3, 30, 9, 128, 1]),
    ]
}

/// A connected victim and the peer that will lie to it.
struct Stage {
    victim: Channel,
    peer: LyingPeer,
    role: Role,
    extended: bool,
    /// The first rule the victim saw broken.
    broken: Option<PeerError>,
    /// The positions at which the victim reads and writes next, if known.
    read_at: u32,
    write_at: u32,
}

/// A history of lies, rings and calls. The bytes read are those in the ring at the victim's own
/// cursor, a write changes these bytes only, and the first error stays.
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
        let (serves, extended, rings) = (choice & 1 != 0, choice & 2 != 0, sizes(choice >> 2));
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (role, mut victim, peer, start) = if serves {
            let peer = std::thread::spawn(move || match extended {
                true => LyingPeer::connect_extended(ours, soon()),
                false => LyingPeer::connect(ours, soon()),
            });
            let first = input.u32();
            let victim = local::serve_from_index(theirs, rings, first, soon());
            let victim = victim.expect("a peer that has not lied yet");
            let peer = peer.join().expect("no panic").expect("a victim");
            (Role::Server, victim, peer, (first, first))
        } else {
            let offer = match extended {
                true => Offer::extended(rings),
                false => Offer::new(rings),
            };
            let offer = offer.expect("an honest offer");
            // Initial indexes of both rings; the peer may also leave something to read.
            let (left, right, unread) = (input.u32(), input.u32(), input.u16());
            let (page, at) = indexes(&offer.page, offer.extension.as_ref());
            page.set_u32(at.left_cons, left);
            page.set_u32(at.left_prod, left);
            page.set_u32(at.right_cons, right);
            page.set_u32(at.right_prod, right.wrapping_add(unread.into()));
            offer.send(&ours, soon()).expect("room in an empty socket");
            let victim = match local::connect_on(theirs, soon()) {
                Ok(victim) => victim,
                Err(Error::Peer(_)) => return None,
                Err(error) => panic!("false indexes led to {error:?}"),
            };
            (Role::Client, victim, offer.into_peer(ours), (right, left))
        };
        let format = match extended {
            true => Format::Extended,
            false => Format::Classic,
        };
        assert_eq!(victim.format(), format);
        victim.set_spin(Duration::ZERO);
        Some(Self {
            victim,
            peer,
            role,
            extended,
            broken: None,
            read_at: start.0,
            write_at: start.1,
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let outcome = self.act(input);
        self.judge(outcome);
    }

    fn act(&mut self, input: &mut Input<'_>) -> vchan::Result<()> {
        let now = Instant::now();
        match input.u8() % 20 {
            0..=3 => {
                falsify(&self.peer.page, self.extension(), input);
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
            // The number of bytes written before the deadline is not reported.
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
            15 => self.read(input, |victim, buf| {
                let before = victim.stats().bytes_read;
                let outcome = victim.read_exact(buf, now);
                let n = usize::try_from(victim.stats().bytes_read - before).expect("small");
                match outcome {
                    Err(error) if n == 0 => Err(error),
                    _ => Ok(Some(n)),
                }
            }),
            16 => self.read(input, |victim, buf| {
                let len = victim.peek(buf.len().min(100), now)?.copy_to(buf);
                victim.consume(len).map(|()| Some(len))
            }),
            17 => self.write(input, |victim, buf| {
                let mut space = victim.reserve(buf.len().min(100), now)?;
                let len = space.copy_from(buf);
                victim.commit(len).map(|()| len)
            }),
            18 => {
                // More than was lent.
                let n = usize::from(input.u16()) + 1;
                let lent = self.victim.try_peek(0)?.map_or(0, |bytes| bytes.len());
                match self.victim.consume(lent + n) {
                    Err(Error::TooMany { .. }) => Ok(()),
                    outcome => outcome.map(|()| panic!("{n} bytes too many were consumed")),
                }
            }
            11 => self.victim.available().map(|n| {
                assert!(n <= self.victim.incoming_ring_bytes());
            }),
            12 => self.victim.drain(now),
            13 => self.victim.peer_gone().map(drop),
            14 => {
                let (incoming, _) = self.rings();
                incoming.store_bytes(usize::from(input.u8()), input.take(200));
                Ok(())
            }
            _ => self.victim.wait(vgpu_transport::Interest::ReadOrWrite, now),
        }
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

    /// The rings that the victim reads and writes.
    fn rings(&self) -> (&Region, &Region) {
        match self.role {
            Role::Server => (&self.peer.left, &self.peer.right),
            Role::Client => (&self.peer.right, &self.peer.left),
        }
    }

    /// The extension page, if it is in use.
    fn extension(&self) -> Option<&Page> {
        self.peer.extension.as_ref().filter(|_| self.extended)
    }

    /// The peer claims to have written and read a little more.
    fn move_honestly(&mut self, by: u16) {
        let (page, at) = indexes(&self.peer.page, self.extension());
        let at = match (self.role, by & 1 == 0) {
            (Role::Server, true) => at.left_prod,
            (Role::Server, false) => at.right_cons,
            (Role::Client, true) => at.right_prod,
            (Role::Client, false) => at.left_cons,
        };
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

/// Offsets of the indexes.
struct Indexes {
    left_prod: usize,
    left_cons: usize,
    right_prod: usize,
    right_cons: usize,
}

/// The page that holds the indexes, and their offsets.
fn indexes<'p>(control: &'p Page, extension: Option<&'p Page>) -> (&'p Page, Indexes) {
    use vchan::layout::offset as classic;
    match extension {
        None => {
            let at = Indexes {
                left_prod: classic::LEFT_PROD,
                left_cons: classic::LEFT_CONS,
                right_prod: classic::RIGHT_PROD,
                right_cons: classic::RIGHT_CONS,
            };
            (control, at)
        }
        Some(page) => {
            let at = Indexes {
                left_prod: extension::offset::LEFT_PROD,
                left_cons: extension::offset::LEFT_CONS,
                right_prod: extension::offset::RIGHT_PROD,
                right_cons: extension::offset::RIGHT_CONS,
            };
            (page, at)
        }
    }
}

fn contents(ring: &Region) -> Vec<u8> {
    let mut bytes = vec![0; ring.len()];
    ring.load_bytes(0, &mut bytes);
    bytes
}

pub(crate) fn control_page_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for choice in 0..16 {
        let mut seed = vec![choice];
        seed.extend([0; 10]);
        // Write, claim it was read; claim something was written, read it; wait and drain.
        seed.extend([
            9, 0, 1, 7, 4, 1, 2, 4, 0, 2, 8, 0, 1, 7, 9, 0, 10, 0, 9, 5, 6, 19, 12, 4, 0, 2, 16,
            50, 0, 17, 60, 0, 7, 4, 8, 0, 15, 4, 0, 18, 1, 0,
        ]);
        seeds.push(seed);
    }
    seeds
}
