#![forbid(unsafe_code)]
//! Shared regions over Xen: granting their pages, and mapping those of the peer.

use std::io;
use std::time::Instant;

use xen_sys::{Access as Grant, ErrorKind, GrantMap, GrantRef, Port, UnmapNotify};

use super::{memory, sys};
use crate::DomId;
use crate::error::{Error, Result};
use crate::region::header::{self, Header};
use crate::region::{Access, Carrier, OwnerMemory, PeerMemory, Ticket, TicketError, grant_list};

/// The code of the other carrier, descriptors.
const CARRIER_DESCRIPTORS: u8 = 2;

/// Pages of a region of `data` pages: with the header and the further pages of its list.
pub(super) fn pages(data: usize) -> usize {
    data.saturating_add(1 + grant_list::further_pages(data))
}

/// Grants the pages of a region to `peer`. Unmapping the header clears this side's state and rings
/// the other end of `port`.
pub(super) fn share(peer: DomId, port: Port, data: usize, access: Access) -> Result<OwnerMemory> {
    let grants = sys::grant_share()?;
    let share = |pages, access, notify| {
        grants
            .share(sys::domain(peer), pages, access, notify)
            .map_err(|error| share_error(error, data))
    };
    let notify = notify(header::OWNER_STATE, port);
    let header = share(1, Grant::ReadWrite, Some(notify))?;
    let grant = match access.peer_writes() {
        true => Grant::ReadWrite,
        false => Grant::ReadOnly,
    };
    let bytes = share(data, grant, None)?;
    let list = match grant_list::further_pages(data) {
        0 => None,
        pages => Some(share(pages, Grant::ReadOnly, None)?),
    };

    let numbers = |refs: &[GrantRef]| refs.iter().map(|gref| gref.0).collect::<Vec<_>>();
    let list_refs = list
        .as_ref()
        .map_or(Vec::new(), |list| numbers(list.refs()));
    let data_refs = numbers(bytes.refs());
    let carrier = Carrier::Grants {
        header: header.refs()[0].0,
    };
    let (header, list) = (memory::shared(header), list.map(memory::shared));
    grant_list::write(&header, list.as_ref(), &list_refs, &data_refs);
    Ok(OwnerMemory {
        header,
        data: memory::shared(bytes),
        list,
        carrier,
        descriptors: None,
    })
}

/// Maps the region of `ticket` that `peer` granted. Unmapping the header clears this side's state
/// and rings the other end of `port`.
pub(super) fn map(
    peer: DomId,
    port: Port,
    ticket: &Ticket,
    deadline: Instant,
) -> Result<PeerMemory> {
    let Carrier::Grants { header: header_ref } = ticket.carrier else {
        return Err(TicketError::Carrier(CARRIER_DESCRIPTORS).into());
    };
    let grants = sys::grant_map()?;
    // First checked through a read-only mapping: if the ticket came too late, the page may be in
    // other use by now, and the notification would clear a byte in it.
    let look = map_pages(
        &*grants,
        peer,
        &[header_ref],
        Grant::ReadOnly,
        None,
        deadline,
    )?;
    Header::new(look).check(ticket)?;

    let notify = notify(header::PEER_STATE, port);
    let header = map_pages(
        &*grants,
        peer,
        &[header_ref],
        Grant::ReadWrite,
        Some(notify),
        deadline,
    )?;
    let refs = grant_list::read(&header, header_ref, ticket.pages(), |reference| {
        map_pages(
            &*grants,
            peer,
            &[reference],
            Grant::ReadOnly,
            None,
            deadline,
        )
    })?;
    let grant = match ticket.access.peer_writes() {
        true => Grant::ReadWrite,
        false => Grant::ReadOnly,
    };
    Ok(PeerMemory {
        data: map_pages(&*grants, peer, &refs, grant, None, deadline)?,
        header,
        kernel_tells: true,
    })
}

fn map_pages(
    grants: &dyn GrantMap,
    peer: DomId,
    refs: &[u32],
    access: Grant,
    notify: Option<UnmapNotify>,
    deadline: Instant,
) -> Result<crate::wire::shm::Region> {
    let refs: Vec<GrantRef> = refs.iter().copied().map(GrantRef).collect();
    grants
        .map(sys::domain(peer), &refs, access, notify, deadline)
        .map(|pages| memory::mapped(pages, access))
        .map_err(map_error)
}

fn notify(state: usize, port: Port) -> UnmapNotify {
    UnmapNotify {
        clear_byte: u16::try_from(state).ok(),
        send_event: Some(port),
    }
}

fn share_error(error: xen_sys::Error, data: usize) -> Error {
    if error.kind() != ErrorKind::GrantLimit {
        return sys::error(error);
    }
    Error::os_with_advice(
        format!(
            "the kernel grants no {} more pages for a region",
            pages(data)
        ),
        io::Error::from_raw_os_error(libc::ENOSPC),
        "ask for a smaller region or smaller rings, close other channels, give the pages of ended \
         regions back, or raise \
         /sys/module/xen_gntalloc/parameters/limit (pages for the whole kernel, 1024 by default)",
    )
}

fn map_error(error: xen_sys::Error) -> Error {
    match (error.kind(), error.errno()) {
        (ErrorKind::MapRefused, Some(errno)) => Error::os_with_advice(
            error.what().to_owned(),
            io::Error::from_raw_os_error(errno),
            "the region has ended or its ticket is wrong, or this domain may map nothing \
             (max_maptrack_frames=0, as on XCP-ng: then let the guest make the region); `xl dmesg` \
             has Xen's reason",
        ),
        _ => sys::error(error),
    }
}
