//! Memory that is not the session's, in copies and in kernels.

use std::fs;

use vgpu_protocol::op::{
    ContextLimit, ContextSetLimit, CopyFromDevice, CopyToDevice, CopyWithinDevice, MemoryAllocate,
    MemoryFree, Synchronize,
};
use vgpu_protocol::status::{ErrorCode, Status};

use super::{INVALID_VALUE, STREAM, bytes, faults, fill, kernel, launch};
use crate::Place;
use crate::guest::Guest;

/// Copies and fills of `n` bytes from and to `at`, all of which are refused.
fn outside(guest: &mut Guest, own: u64, at: u64, n: u64) {
    let stream = STREAM;
    let bytes = bytes(n);
    guest.refused(
        CopyToDevice {
            to: at,
            bytes,
            stream,
        },
        &[INVALID_VALUE],
    );
    guest.refused(
        CopyFromDevice {
            from: at,
            bytes,
            stream,
        },
        &[INVALID_VALUE],
    );
    guest.refused(
        CopyWithinDevice {
            to: at,
            from: own,
            bytes,
            stream,
        },
        &[INVALID_VALUE],
    );
    guest.refused(
        CopyWithinDevice {
            to: own,
            from: at,
            bytes,
            stream,
        },
        &[INVALID_VALUE],
    );
    guest.refused(fill(at, n), &[INVALID_VALUE]);
}

pub(super) fn one_byte_outside(place: &Place<'_>) {
    let mut guest = place.open();
    let n = 4096;
    let at = guest.allocate(n);
    let other = guest.allocate(n);
    for (from, len) in [
        (at, n + 1),
        (at + 1, n),
        (at - 1, 1),
        (at + n, 1),
        (at + 8, u64::MAX - 7),
    ] {
        // Two allocations may lie side by side, and are two all the same.
        outside(&mut guest, other, from, len);
    }
    guest.done(fill(at, n));
    guest.serves();
}

/// Addresses that are not the session's: of another session, of what it has freed, of its worker, of nobody.
fn foreign(place: &Place<'_>, guest: &mut Guest) -> Vec<u64> {
    let freed = guest.allocate(1 << 20);
    guest.done(MemoryFree { address: freed });
    guest.done(Synchronize {});
    let mut all = vec![place.elsewhere, freed, 8, 0x7fff_ffff_f000, u64::MAX - 7];
    // Who may not look there still tries the others.
    let maps = fs::read_to_string(format!("/proc/{}/maps", place.worker(guest)));
    let maps = maps.unwrap_or_default();
    for part in ["r-xp", "r--p", "[heap]", "[stack]", "rw-p"] {
        let line = maps.lines().find(|line| line.contains(part));
        let first = line.and_then(|line| line.split('-').next());
        all.extend(first.and_then(|address| u64::from_str_radix(address, 16).ok()));
    }
    all
}

pub(super) fn others_in_copies(place: &Place<'_>) {
    let mut guest = place.open();
    let own = guest.allocate(64);
    for address in foreign(place, &mut guest) {
        outside(&mut guest, own, address, 8);
        guest.refused(MemoryFree { address }, &[INVALID_VALUE]);
    }
    guest.done(fill(own, 64));
    guest.serves();
}

pub(super) fn wild_writes(place: &Place<'_>) {
    for number in 0.. {
        let mut guest = place.open();
        let (module, poke) = kernel(&mut guest, "poke");
        let all = foreign(place, &mut guest);
        let Some(address) = all.get(number) else {
            return;
        };
        faults(
            &mut guest,
            launch(module, poke, &address.to_le_bytes()),
            &[700, 716, 719],
        );
    }
}

pub(super) fn traps(place: &Place<'_>) {
    let mut guest = place.open();
    let (module, trap) = kernel(&mut guest, "give_up");
    faults(&mut guest, launch(module, trap, &[]), &[710, 719]);
}

pub(super) fn limits(place: &Place<'_>) {
    let mut guest = place.open();
    let unknown = [Status::Cuda(215)];
    for limit in [3, 4, 5, 6, 7, 1 << 31, u32::MAX] {
        guest.refused(ContextLimit { limit }, &unknown);
        guest.refused(ContextSetLimit { limit, bytes: 8 }, &unknown);
    }
    // More than the quota, also where it is a product that counts, or a sum of several.
    let over = [ErrorCode::QuotaMemory.into()];
    for limit in 0..3 {
        for bytes in [1 << 30, 1 << 62, u64::MAX - 7, u64::MAX] {
            guest.refused(ContextSetLimit { limit, bytes }, &over);
        }
    }
    guest.done(ContextSetLimit {
        limit: 2,
        bytes: 40 << 20,
    });
    guest.refused(
        ContextSetLimit {
            limit: 1,
            bytes: 40 << 20,
        },
        &over,
    );
    guest.refused(
        MemoryAllocate {
            bytes: bytes(40 << 20),
        },
        &over,
    );
    // Nothing at all is a limit like others, or none.
    for limit in 0..3 {
        guest.ask(ContextSetLimit { limit, bytes: 0 });
    }
    guest.serves();
}
