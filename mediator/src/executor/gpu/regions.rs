//! Memory of the guest's beside the ring, which the device copies from and to.
//!
//! The guest can change it at any moment, so nothing is decided by what is in it: the device copies it, and writes the
//! words that say how far it is.

use std::sync::Arc;

use vchan::region;
use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    Body, CopyFromRegion, CopyToRegion, NO_WORD, Op, RegionMap, RegionMapReply, RegionUnmapReply,
};
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::clock;

use super::device::{Answer, AnsweredOf, Call, Device, Part, Region, Rows, Word, Work};
use super::handles;
use super::queue::{Purpose, Reclaim, What};
use super::{Event, Gpu, Refused, invalid, refused};

/// Bytes that the headers and page lists of a session's regions may take beyond the regions' own.
const BESIDE: u64 = 8 << 20;

/// `CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY`.
const MAPS_HOST_MEMORY: usize = 19;

/// The regions of a session.
#[derive(Debug)]
pub(super) struct Regions {
    /// Maps them; `None` where the guest's stream has no memory that the device could use.
    channel: Option<region::Regions>,
    /// `None` while it is being registered.
    table: HandleTable<Option<Arc<Region>>>,
    /// Bytes of those that are there, or on their way in or out.
    bytes: u64,
}

impl Regions {
    pub(super) fn new(most: u32) -> Self {
        Self {
            channel: None,
            table: HandleTable::new(HandleKind::Region, most),
            bytes: 0,
        }
    }

    /// A part of a region.
    fn part(
        &mut self,
        handle: Handle,
        (offset, bytes): (u64, u64),
        (word, value): (u64, u64),
    ) -> Result<Part, Refused> {
        let named = self.table.get_mut(handle);
        let region = match named.map_err(|error| handles::wrong(handle, error))? {
            Some(region) => Arc::clone(region),
            None => return Err(handles::wrong(handle, "is not mapped yet")),
        };
        let len = region.view().len();
        let within = |offset: u64, bytes: u64| {
            let end = offset.checked_add(bytes)?;
            (end <= len as u64).then(|| usize::try_from(offset).ok())?
        };
        let Some(offset) = within(offset, bytes) else {
            return Err(invalid(format!(
                "{bytes} bytes from {offset} on, in a region of {len}"
            )));
        };
        let word = match word {
            NO_WORD => None,
            word => {
                let size = size_of::<u64>() as u64;
                let place = within(word, size).filter(|_| word.is_multiple_of(size));
                let Some(offset) = place else {
                    return Err(invalid(format!(
                        "a word at {word}, in a region of {len} bytes"
                    )));
                };
                Some(Word { offset, value })
            }
        };
        Ok(Part {
            region,
            offset,
            word,
        })
    }
}

impl<D: Device> Gpu<D> {
    /// From here on the session may have regions, which this maps.
    pub(in crate::executor) fn set_regions(&mut self, channel: Option<region::Regions>) {
        if let Some(channel) = &channel {
            let most = self.limits.pinned.saturating_add(BESIDE);
            channel.set_limit(usize::try_from(most).unwrap_or(usize::MAX));
        }
        self.regions.channel = channel;
    }

    pub(super) fn region_map(
        &mut self,
        id: u32,
        map: &RegionMap,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let bytes = map.bytes.get();
        let left = self.limits.pinned.saturating_sub(self.regions.bytes);
        if bytes > left {
            let most = self.limits.pinned;
            let text = format!(
                "a region of {bytes} bytes; this session has {left} left of {most} (limits.pinned_mib)"
            );
            return Err(refused(ErrorCode::QuotaMemory, text));
        }
        let Some(channel) = &self.regions.channel else {
            let text = "there is no memory beside the ring at this endpoint";
            return Err(refused(ErrorCode::Unsupported, text));
        };
        handles::open(&mut self.regions.table, map.region, None)?;
        // Its memory was sent before its ticket, so there is nothing to wait for.
        let (ticket, now) = (map.ticket.as_slice(), clock::now());
        let mapped = match usize::try_from(map.address) {
            Ok(0) | Err(_) => channel.map(ticket, now),
            Ok(address) => channel.map_at(ticket, address, now),
        };
        let region = mapped
            .map_err(|error| error.to_string())
            .and_then(|mapped| match mapped.len() as u64 {
                len if len == bytes => Region::new(mapped).map_err(|error| error.to_string()),
                len => Err(format!("it has {len} bytes and not {bytes}")),
            });
        let region = match region {
            Ok(region) => region,
            Err(why) => {
                let _ = self.regions.table.close(map.region);
                return Err(invalid(format!("the region cannot be mapped: {why}")));
            }
        };
        self.regions.bytes += bytes;
        let purpose = Purpose::Map {
            id,
            region: map.region,
            bytes,
        };
        self.call(purpose, Call::Register(Box::new(region)));
        Ok(None)
    }

    /// The result of registering a region.
    pub(super) fn region_mapped(
        &mut self,
        id: u32,
        (handle, bytes): (Handle, u64),
        answer: AnsweredOf<D>,
    ) {
        match answer {
            // Unless nobody waits for it any more.
            Ok(Answer::Registered(region)) if id != 0 => {
                let reply = RegionMapReply {
                    by_device: u8::from(D::COPIES_BY_ITSELF),
                    address: match self.maps_host_memory() {
                        true => region.there().unwrap_or(0),
                        false => 0,
                    },
                };
                if let Ok(place) = self.regions.table.get_mut(handle) {
                    *place = Some(Arc::new(*region));
                }
                self.done(id, Ok(reply.encode()));
            }
            answer => {
                let _ = self.regions.table.close(handle);
                self.regions.bytes -= bytes;
                self.answer_failed(id, answer);
            }
        }
    }

    /// Whether kernels reach memory that is registered.
    fn maps_host_memory(&self) -> bool {
        let attributes = &self.device.description().attributes;
        attributes.get(MAPS_HOST_MEMORY) == Some(&1)
    }

    pub(super) fn region_unmap(
        &mut self,
        id: u32,
        handle: Handle,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if let Some(region) = handles::close(&mut self.regions.table, handle)? {
            self.reclaim(Reclaim::region(id, self.last_tag, region));
        }
        Ok(Some(RegionUnmapReply {}.encode()))
    }

    /// A region goes now: nothing uses it any more.
    pub(super) fn region_goes(&mut self, region: &Region) {
        self.regions.bytes -= region.view().len() as u64;
    }

    pub(super) fn copy_from_region(
        &mut self,
        id: u32,
        copy: &CopyFromRegion,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let to = Rows::range(copy.to, copy.bytes.get());
        let (region, word) = ((copy.region, copy.offset), (copy.word, copy.value));
        self.copy_beside(id, Op::CopyFromRegion, to, region, word, copy.stream)
    }

    pub(super) fn copy_to_region(
        &mut self,
        id: u32,
        copy: &CopyToRegion,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let from = Rows::range(copy.from, copy.bytes.get());
        let (region, word) = ((copy.region, copy.offset), (copy.word, copy.value));
        self.copy_beside(id, Op::CopyToRegion, from, region, word, copy.stream)
    }

    /// Queues a copy between `row` on the device and the bytes of a region from an offset on.
    fn copy_beside(
        &mut self,
        id: u32,
        op: Op,
        row: Rows,
        (region, offset): (Handle, u64),
        word: (u64, u64),
        stream: StreamRef,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(stream)?;
        self.ranges.check_rows(row).map_err(invalid)?;
        let part = self.regions.part(region, (offset, row.bytes()), word)?;
        // It lies within a region.
        let bytes = usize::try_from(row.bytes()).unwrap_or(usize::MAX);
        let (work, counted) = match op {
            Op::CopyFromRegion => (Work::FromRegion { to: row, part }, Event::Beside(bytes, 0)),
            _ => (Work::ToRegion { from: row, part }, Event::Beside(0, bytes)),
        };
        self.submit(What::Other(id, op), stream, work)?;
        self.events.push_back(counted);
        Ok(Some(Self::answer(op)))
    }
}
