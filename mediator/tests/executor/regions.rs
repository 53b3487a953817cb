//! Memory of the guest's that an executor maps: copies, words, and a guest that lies about them.

use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use vchan::region::{Access, OwnedRegion};
use vchan::{Channel, local};
use vgpu_mediator::executor::Executor;
use vgpu_mediator::policy::Share;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromRegion, CopyToRegion, CopyWithinDevice, Launch, MemoryAllocate,
    MemoryAllocateReply, MemoryFree, NO_WORD, RegionMap, RegionMapReply, RegionUnmap, Request,
    Synchronize,
};
use vgpu_protocol::status::{ErrorCode, Status};

use crate::conformance::{WATCHDOG, ask, copy_down, load};

const STREAM: StreamRef = StreamRef::DEFAULT;
const INVALID_VALUE: Status = Status::Cuda(1);

fn soon() -> Instant {
    Instant::now() + WATCHDOG
}

/// Both ends of a channel, the guest's first.
pub(crate) fn channels() -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().expect("a pair");
    let guest = thread::spawn(move || local::serve_on(one, 4096, soon()));
    let mediator = local::connect_on(other, soon()).expect("a channel");
    let guest = guest.join().expect("no panic");
    (guest.expect("a channel"), mediator)
}

fn handle(slot: u32, generation: u32) -> Handle {
    Handle::new(HandleKind::Region, slot, generation).expect("sound")
}

fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).expect("not 0")
}

fn map(region: Handle, bytes: u64, ticket: &[u8]) -> Request {
    RegionMap {
        region,
        bytes: bytes.try_into().expect("not 0"),
        address: 0,
        ticket: Bytes::new(ticket).expect("short"),
    }
    .into()
}

/// A guest with one megabyte on the device, and an executor that lies below it.
struct Guest<'e> {
    executor: &'e mut dyn Executor,
    channel: Channel,
    /// First address of the memory.
    there: u64,
}

const THERE: u64 = 1 << 20;

impl<'e> Guest<'e> {
    /// May have at most so many MiB page-locked.
    fn new(executor: &'e mut dyn Executor, pinned_mib: u32) -> (Self, Channel) {
        let (channel, mediator) = channels();
        executor.set_share(Share {
            pinned_mib: Some(pinned_mib),
            ..Share::default()
        });
        executor.set_regions(mediator.regions());
        let body = ask(
            executor,
            MemoryAllocate {
                bytes: bytes(THERE),
            },
        )
        .expect("memory");
        let there = MemoryAllocateReply::decode(&body).expect("a reply").address;
        let guest = Self {
            executor,
            channel,
            there,
        };
        (guest, mediator)
    }

    fn ask(&mut self, request: impl Into<Request>) -> Result<Vec<u8>, Status> {
        let asked = ask(self.executor, request);
        asked.map_err(|failure| failure.expect("an end").status)
    }

    fn refused(&mut self, request: impl Into<Request>, status: impl Into<Status>) {
        let request = request.into();
        assert_eq!(self.ask(request.clone()), Err(status.into()), "{request:?}");
    }

    fn region(&mut self, len: usize, handle: Handle) -> OwnedRegion {
        let region = self.channel.create_region(len, Access::Both).expect("made");
        self.ask(map(handle, len as u64, &region.ticket()))
            .expect("mapped");
        region
    }

    fn up(&self, region: Handle, offset: u64, n: u64, word: u64) -> CopyFromRegion {
        CopyFromRegion {
            to: self.there,
            region,
            offset,
            bytes: bytes(n),
            word,
            value: 7,
            stream: STREAM,
        }
    }

    fn down(&self, region: Handle, offset: u64, n: u64, word: u64) -> CopyToRegion {
        CopyToRegion {
            from: self.there,
            region,
            offset,
            bytes: bytes(n),
            word,
            value: 9,
            stream: STREAM,
        }
    }

    fn end(mut self) {
        let address = self.there;
        self.ask(MemoryFree { address }).expect("freed");
        self.ask(Synchronize {}).expect("sound");
    }
}

fn pattern(n: usize, seed: u8) -> Vec<u8> {
    (0..n)
        .map(|i| ((i * 31) >> 2).to_le_bytes()[0] ^ seed)
        .collect()
}

/// Bytes travel both ways, words say when, and what was let go is unmapped.
pub(crate) fn copies(executor: &mut dyn Executor) {
    let (mut guest, _mediator) = Guest::new(executor, 8);
    let len = 300_000;
    let region = handle(0, 1);
    let mut memory = guest.region(len, region);
    for (offset, n) in [(64, 1), (65, 4097), (4096, 200_001), (len - 1, 1)] {
        let sent = pattern(n, n.to_le_bytes()[0]);
        memory.write_at(offset, &sent).expect("within");
        memory.store_u64(8, 0).expect("within");
        let up = guest.up(region, offset as u64, n as u64, 8);
        guest.ask(up).expect("queued");
        guest.ask(Synchronize {}).expect("sound");
        assert_eq!(
            memory.load_u64(8).expect("within"),
            7,
            "{n} bytes at {offset}"
        );
        let there = guest.there;
        assert!(copy_down(guest.executor, there, bytes(n as u64)) == sent);
        // Back to another place.
        memory.write_at(64, &vec![0xee; 200_001]).expect("within");
        let down = guest.down(region, 64, n as u64, 16);
        guest.ask(down).expect("queued");
        guest.ask(Synchronize {}).expect("sound");
        assert_eq!(memory.load_u64(16).expect("within"), 9);
        let mut came = vec![0; n];
        memory.read_at(64, &mut came).expect("within");
        assert!(came == sent, "{n} bytes at {offset}");
    }
    // Where this program has it, so there is no room for another mapping.
    let other = guest.channel.create_region(len, Access::Both);
    let other = other.expect("made");
    let address = other.view(0, len).expect("all of it").as_ptr();
    let address = address.addr().get() as u64;
    let request = RegionMap {
        region: handle(1, 1),
        address,
        bytes: bytes(len as u64),
        ticket: Bytes::new(&other.ticket()).expect("short"),
    };
    let reply = guest.ask(request).expect("mapped");
    let reply = RegionMapReply::decode(&reply).expect("a reply");
    assert_ne!(reply.address, address);
    let region_of_other = RegionUnmap {
        region: handle(1, 1),
    };
    guest.ask(region_of_other).expect("queued");
    // Without a word; then it goes behind the copy that uses it, and its pages are the guest's alone.
    let last = guest.up(region, 0, 1, NO_WORD);
    guest.ask(last).expect("queued");
    guest.ask(RegionUnmap { region }).expect("queued");
    guest.ask(Synchronize {}).expect("sound");
    memory.revoke(soon()).expect("unmapped");
    guest.end();
}

/// Nothing outside of a region is copied or written, and what is wrong costs nothing but its own request.
pub(crate) fn lies(executor: &mut dyn Executor) {
    let (mut guest, _mediator) = Guest::new(executor, 8);
    let (len, region) = (10_000, handle(0, 1));
    let memory = guest.region(len, region);
    let all = len as u64;
    let outside = [
        (0, all + 1),
        (1, all),
        (all, 1),
        (all + 1, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (1 << 63, 1 << 63),
    ];
    for (offset, n) in outside {
        let (up, down) = (
            guest.up(region, offset, n, NO_WORD),
            guest.down(region, offset, n, NO_WORD),
        );
        guest.refused(up, INVALID_VALUE);
        guest.refused(down, INVALID_VALUE);
    }
    for word in [
        1,
        4,
        7,
        all - 7,
        all,
        all + 8,
        u64::MAX - 7,
        u64::MAX - 1,
        1 << 63,
    ] {
        let (up, down) = (guest.up(region, 0, 8, word), guest.down(region, 0, 8, word));
        guest.refused(up, INVALID_VALUE);
        guest.refused(down, INVALID_VALUE);
    }
    // Beyond the memory on the device.
    let larger = handle(1, 1);
    let _larger = guest.region(2 << 20, larger);
    let (up, down) = (
        guest.up(larger, 0, THERE + 1, NO_WORD),
        guest.down(larger, 0, THERE + 1, NO_WORD),
    );
    guest.refused(up, INVALID_VALUE);
    guest.refused(down, INVALID_VALUE);
    // Regions that are none.
    let others = [
        handle(0, 2),
        handle(2, 1),
        Handle::new(HandleKind::Module, 0, 1).expect("sound"),
    ];
    for other in others {
        let (up, down) = (
            guest.up(other, 0, 1, NO_WORD),
            guest.down(other, 0, 1, NO_WORD),
        );
        guest.refused(up, ErrorCode::Handle);
        guest.refused(down, ErrorCode::Handle);
        guest.refused(RegionUnmap { region: other }, ErrorCode::Handle);
    }
    // Tickets: one that was used, one of another length, of nothing, of memory for reading alone.
    guest.refused(map(handle(2, 1), all, &memory.ticket()), INVALID_VALUE);
    guest.refused(map(region, all, &memory.ticket()), ErrorCode::Handle);
    // A handle whose region could not be mapped is free again, and its generation was used.
    for (generation, wrong) in (1..).zip([1, all - 1, all + 1, 1 << 20]) {
        let fresh = guest.channel.create_region(len, Access::Both);
        let fresh = fresh.expect("made").ticket();
        let region = handle(3, generation);
        guest.refused(map(region, wrong, &fresh), INVALID_VALUE);
        guest.refused(map(region, all, &fresh), ErrorCode::Handle);
        guest.refused(RegionUnmap { region }, ErrorCode::Handle);
    }
    let reader = guest.channel.create_region(len, Access::PeerReads);
    let reader = reader.expect("made").ticket();
    guest.refused(map(handle(4, 1), all, &reader), INVALID_VALUE);
    for (generation, garbage) in (1..).zip([&[][..], &[0; 47], &[0; 48], &[0xff; 48]]) {
        guest.refused(map(handle(5, generation), all, garbage), INVALID_VALUE);
    }
    // What is right goes on as before.
    let up = guest.up(region, 0, 8, 0);
    guest.ask(up).expect("queued");
    guest.end();
}

/// Page-locked memory is bounded, and given back.
pub(crate) fn quota(executor: &mut dyn Executor) {
    let (mut guest, _mediator) = Guest::new(executor, 3);
    let mib = 1 << 20;
    for round in 1..4 {
        let first = handle(0, round);
        let _one = guest.region(2 * mib, first);
        let more = guest
            .channel
            .create_region(2 * mib, Access::Both)
            .expect("made");
        let request = map(handle(1, 2 * round - 1), 2 * mib as u64, &more.ticket());
        guest.refused(request, ErrorCode::QuotaMemory);
        drop(more);
        let second = handle(1, 2 * round);
        let _other = guest.region(mib, second);
        for region in [first, second] {
            guest.ask(RegionUnmap { region }).expect("queued");
        }
        guest.ask(Synchronize {}).expect("sound");
    }
    guest.end();
}

/// Kernels reach a region, also one that is let go while they are queued, and nothing beside it or after it.
pub(crate) fn reached(executor: &mut dyn Executor) {
    const N: u64 = 100_000;
    let (mut guest, _mediator) = Guest::new(executor, 8);
    let (module, function) = load(guest.executor, soon()).expect("a module");
    let (region, len) = (handle(0, 1), 1 << 20);
    let mut memory = guest
        .channel
        .create_region(len, Access::Both)
        .expect("made");
    let body = guest
        .ask(map(region, len as u64, &memory.ticket()))
        .expect("mapped");
    let address = RegionMapReply::decode(&body).expect("a reply").address;
    assert_ne!(address, 0, "out of the reach of kernels");
    let floats = |seed: u16| -> Vec<u8> {
        let numbers = (0..N).map(|i| f32::from(seed) + (i % 1000) as f32);
        numbers.flat_map(f32::to_le_bytes).collect()
    };
    // Not at its beginning.
    let at = 256;
    memory.write_at(at, &floats(0)).expect("within");
    let c = address + at as u64;
    let add = |a: u64, b: u64, c: u64, n: u64| Launch {
        module,
        function,
        grid: [u32::try_from(n).expect("few").div_ceil(256), 1, 1],
        block: [256, 1, 1],
        shared_bytes: 0,
        stream: STREAM,
        deadline_ms: 0,
        parameters: Bytes::new([a, b, c, n].map(u64::to_le_bytes).as_flattened()).expect("short"),
        attributes: Default::default(),
    };
    let up = guest.up(region, at as u64, 4 * N, NO_WORD);
    guest.ask(up).expect("queued");
    // Copies name it by its handle, and not as memory of the device.
    for (to, from) in [(guest.there, c), (c, guest.there), (address, c)] {
        let copy = CopyWithinDevice {
            to,
            from,
            bytes: bytes(4),
            stream: STREAM,
        };
        guest.refused(copy, INVALID_VALUE);
    }
    guest.refused(MemoryFree { address }, INVALID_VALUE);
    // What lies on the device is added three times; then the region goes, behind the kernels.
    for _ in 0..3 {
        guest.ask(add(guest.there, c, c, N)).expect("queued");
    }
    guest.ask(RegionUnmap { region }).expect("queued");
    guest.ask(Synchronize {}).expect("sound");
    let mut sums = vec![0; 4 * usize::try_from(N).expect("few")];
    memory.read_at(at, &mut sums).expect("within");
    let (sums, _) = sums.as_chunks::<4>();
    for (i, sum) in sums.iter().enumerate() {
        assert_eq!(f32::from_le_bytes(*sum), 4.0 * (i % 1000) as f32, "at {i}");
    }
    memory.revoke(soon()).expect("unmapped");
    // It is nobody's any more.
    guest
        .ask(add(guest.there, guest.there, c, 1))
        .expect("queued");
    let fault = guest.ask(Synchronize {}).expect_err("a fault");
    assert!(
        [Status::Cuda(700), Status::Cuda(719)].contains(&fault),
        "{fault:?}"
    );
}

/// A device that cannot use the memory says so, and nothing of it stays.
pub(crate) fn not_lockable(executor: &mut dyn Executor, status: Status) {
    let (mut guest, _mediator) = Guest::new(executor, 1);
    for slot in 0..3 {
        let region = guest.channel.create_region(1 << 20, Access::Both);
        let mut region = region.expect("made");
        guest.refused(map(handle(slot, 1), 1 << 20, &region.ticket()), status);
        region.revoke(soon()).expect("unmapped");
    }
    guest.end();
}
