//! A region that is handed over and taken back, in the models.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use loom::thread;

use crate::backend::KERNEL_TELLS;
use crate::channel::Channel;
use crate::error::Error;
use crate::pair::{Pair, Start, far, pair};
use crate::region::{Access, OwnedRegion, RegionError};

/// Bytes of every region here.
const BYTES: usize = 1;

/// A value whose drop is part of the protocol, except in a model that has failed and unwinds.
struct Ends<T>(ManuallyDrop<T>);

impl<T> Ends<T> {
    fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T> Deref for Ends<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Ends<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: dropped once, here, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// A region with this byte in it.
fn region_with(channel: &Channel, byte: u8) -> Ends<OwnedRegion> {
    let mut region = Ends::new(channel.create_region(BYTES, Access::Both).unwrap());
    region.write_at(0, &[byte]).unwrap();
    region
}

/// Takes a region back, uses its memory for the next, and takes that back too.
fn take_back_and_reuse(channel: &Channel, mut region: Ends<OwnedRegion>) {
    region.revoke(far()).unwrap();
    drop(region);
    let mut next = region_with(channel, 2);
    next.revoke(far()).unwrap();
}

/// The peer maps, looks and unmaps while the owner takes the region back. The peer sees its own
/// region's byte or an error; the owner reuses the memory when the peer is done with it, not
/// before.
pub(crate) fn map_against_revoke() {
    let Pair { server, client, .. } = pair(Start { unread: 0 });
    let region = region_with(&server, 1);
    let ticket = region.ticket();
    let peer = thread::spawn(move || {
        match client.map_region(&ticket, far()).map(Ends::new) {
            Ok(mapped) => {
                let mut byte = [0];
                match mapped.read_at(0, &mut byte) {
                    Ok(()) => assert_eq!(byte, [1], "another region's byte"),
                    Err(Error::Region(RegionError::Revoked)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            Err(Error::Region(RegionError::Revoked | RegionError::Used)) => {}
            // The memory holds the next region already.
            Err(Error::Region(RegionError::Stale)) => {}
            Err(error) => panic!("{error:?}"),
        }
        client
    });
    take_back_and_reuse(&server, region);
    drop(peer.join().unwrap());
}

/// The peer maps a region while its owner takes it back and makes the next of the same memory. The
/// next is intact, and can be mapped.
pub(crate) fn late_ticket() {
    let Pair { server, client, .. } = pair(Start { unread: 0 });
    let mut region = region_with(&server, 1);
    let ticket = region.ticket();
    let peer = thread::spawn(move || {
        drop(client.map_region(&ticket, far()).map(Ends::new));
        client
    });
    region.revoke(far()).unwrap();
    drop(region);
    let next = region_with(&server, 2);
    let client = peer.join().unwrap();
    let mapped = Ends::new(client.map_region(&next.ticket(), far()).unwrap());
    let mut byte = [0];
    mapped.read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [2]);
}

/// The same where a kernel notifies the owner when a header is unmapped.
pub(crate) fn late_ticket_where_the_kernel_tells() {
    KERNEL_TELLS.set(true);
    late_ticket();
}

/// The peer has a region mapped and sleeps in a read of the channel; the owner takes the region back.
pub(crate) fn revoke_under_a_sleeper() {
    let Pair {
        mut server,
        mut client,
        ..
    } = pair(Start { unread: 0 });
    let region = region_with(&server, 1);
    let mapped = Ends::new(client.map_region(&region.ticket(), far()).unwrap());
    let peer = thread::spawn(move || {
        assert_eq!(client.read(&mut [0], far()).unwrap(), 1);
        let gone = mapped.read_at(0, &mut [0]);
        assert!(
            matches!(gone, Err(Error::Region(RegionError::Revoked))),
            "{gone:?}"
        );
        drop(mapped);
        client
    });
    take_back_and_reuse(&server, region);
    server.write_all(&[0], far()).unwrap();
    drop(peer.join().unwrap());
}
