//! Streams and events: by the guest's handles here, by keys of their own on the device.

use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    Body, EVENT_FLAGS, EventCreate, EventCreateReply, EventDestroyReply, EventElapsed,
    EventElapsedReply, EventQueryReply, EventRecord, EventRecordReply, Op, STREAM_FLAGS,
    StreamCreate, StreamCreateReply, StreamDestroyReply, StreamQueryReply, StreamWaitEvent,
    StreamWaitEventReply,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::super::cuda_result::{CAPTURED_EVENT, INVALID_HANDLE, NOT_READY};
use super::captures::{self, Place, Point};
use super::device::{Device, DeviceError, Key, Work};
use super::handles::{self, Objects};
use super::queue::{Reclaim, Until, What};
use super::{Gpu, Refused, invalid, refused};

/// Streams of a session at most.
const MOST_STREAMS: u32 = 512;

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

/// The streams and events of a session.
pub(super) struct Streams {
    streams: Objects<Stream>,
    open_streams: u32,
    events: Objects<Event>,
    /// Every stream and event has a key that none had before; 0 is the default stream.
    last_key: Key,
}

/// A stream that a request names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub(super) key: Key,
    /// It and the default stream wait for each other.
    pub(super) is_blocking: bool,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    key: Key,
    has_time: bool,
    recorded: Recorded,
}

/// The latest record of an event.
#[derive(Debug, Clone, Copy)]
enum Recorded {
    Never,
    /// By this work.
    Work(u64),
    /// In a capture.
    Captured(Point),
}

/// The error of what cannot be done with an event that was recorded in a capture.
pub(super) fn captured_event() -> Refused {
    let text = "the event was recorded in a stream that was capturing";
    captures::error(CAPTURED_EVENT, text)
}

impl Streams {
    pub(super) fn new(most: u32) -> Self {
        Self {
            streams: HandleTable::new(HandleKind::Stream, most),
            open_streams: 0,
            events: HandleTable::new(HandleKind::Event, most),
            last_key: 0,
        }
    }

    pub(super) fn next_key(&mut self) -> Key {
        self.last_key += 1;
        self.last_key
    }

    /// The stream that `stream` means, whatever it does.
    pub(super) fn named(&mut self, stream: StreamRef) -> Result<Stream, Refused> {
        let Some(handle) = stream.handle() else {
            return Ok(Stream {
                key: 0,
                is_blocking: true,
            });
        };
        handles::named(&mut self.streams, handle).copied()
    }

    fn event(&mut self, handle: Handle) -> Result<&mut Event, Refused> {
        handles::named(&mut self.events, handle)
    }
}

fn unknown_flags(flags: u32) -> Refused {
    invalid(format!("flags are {flags:#x}, which has unknown bits"))
}

impl<D: Device> Gpu<D> {
    pub(super) fn stream_create(
        &mut self,
        create: &StreamCreate,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let key = self.streams.next_key();
        let handle = create.stream;
        let stream = Stream {
            key,
            is_blocking: create.flags & STREAM_FLAGS == 0,
        };
        handles::open(&mut self.streams.streams, handle, Ok(stream))?;
        let made = self.make_stream(key, create);
        if let Err(failure) = made {
            if let Ok(stream) = self.streams.streams.get_mut(handle) {
                *stream = Err(failure.clone());
            }
            return Err(failure);
        }
        self.streams.open_streams += 1;
        Ok(Some(StreamCreateReply {}.encode()))
    }

    fn make_stream(&mut self, key: Key, create: &StreamCreate) -> Result<(), Refused> {
        if create.flags & !STREAM_FLAGS != 0 {
            return Err(unknown_flags(create.flags));
        }
        if self.streams.open_streams >= MOST_STREAMS {
            let text = format!("{MOST_STREAMS} streams are open, and no more are allowed");
            return Err(refused(ErrorCode::QuotaHandles, text));
        }
        let made = self.device.make_stream(key, create.flags, create.priority);
        made.map_err(|error| self.failure(0, &error))
    }

    pub(super) fn stream_destroy(
        &mut self,
        id: u32,
        handle: Handle,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if let Ok(Stream { key, .. }) = handles::close(&mut self.streams.streams, handle)? {
            self.leave_capture(key);
            self.reclaim(Reclaim::stream(id, self.last_tag, key));
        }
        Ok(Some(StreamDestroyReply {}.encode()))
    }

    /// A stream is gone from the device.
    pub(super) fn stream_is_gone(&mut self) {
        self.streams.open_streams -= 1;
    }

    pub(super) fn stream_query(&mut self, stream: StreamRef) -> Result<Option<Vec<u8>>, Refused> {
        let key = self.live(stream)?;
        self.take_done();
        self.sound()?;
        let done = u8::from(self.is_reached(Until::Stream(key, self.last_tag)));
        Ok(Some(StreamQueryReply { done }.encode()))
    }

    pub(super) fn stream_wait_event(
        &mut self,
        id: u32,
        wait: &StreamWaitEvent,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let place = self.place(wait.stream)?;
        let event = *self.streams.event(wait.event)?;
        match (place, event.recorded) {
            (_, Recorded::Never) => {}
            (Place::Stream(stream), Recorded::Work(_)) => {
                let what = What::Other(id, Op::StreamWaitEvent);
                self.submit(what, stream, Work::Wait(event.key))?;
            }
            (Place::Stream(_), Recorded::Captured(point)) => {
                self.join_capture(wait.stream, point)?;
            }
            (Place::Capture(member), Recorded::Work(_)) => self.capture_wait(member, None)?,
            (Place::Capture(member), Recorded::Captured(point)) => {
                self.capture_wait(member, Some(point))?;
            }
        }
        Ok(Some(StreamWaitEventReply {}.encode()))
    }

    pub(super) fn event_create(
        &mut self,
        create: &EventCreate,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let event = Event {
            key: self.streams.next_key(),
            has_time: create.flags & DISABLE_TIMING == 0,
            recorded: Recorded::Never,
        };
        let handle = create.event;
        handles::open(&mut self.streams.events, handle, Ok(event))?;
        let made = match create.flags & !EVENT_FLAGS {
            0 => self
                .device
                .make_event(event.key, event.has_time)
                .map_err(|error| self.failure(0, &error)),
            _ => Err(unknown_flags(create.flags)),
        };
        if let Err(failure) = made {
            if let Ok(event) = self.streams.events.get_mut(handle) {
                *event = Err(failure.clone());
            }
            return Err(failure);
        }
        Ok(Some(EventCreateReply {}.encode()))
    }

    pub(super) fn event_destroy(
        &mut self,
        id: u32,
        handle: Handle,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if let Ok(event) = handles::close(&mut self.streams.events, handle)? {
            self.reclaim(Reclaim::event(id, self.last_tag, event.key));
        }
        Ok(Some(EventDestroyReply {}.encode()))
    }

    pub(super) fn event_record(
        &mut self,
        id: u32,
        record: &EventRecord,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let place = self.place(record.stream)?;
        let key = self.streams.event(record.event)?.key;
        let recorded = match place {
            Place::Stream(stream) => {
                self.submit(What::Other(id, Op::EventRecord), stream, Work::Record(key))?;
                Recorded::Work(self.last_tag)
            }
            Place::Capture(member) => Recorded::Captured(self.point(member)?),
        };
        self.streams.event(record.event)?.recorded = recorded;
        Ok(Some(EventRecordReply {}.encode()))
    }

    /// The work that recorded an event last. One that was recorded in a capture cannot be asked for that, and the
    /// capture does not survive the attempt.
    fn recorded(&mut self, handle: Handle) -> Result<Option<u64>, Refused> {
        match self.streams.event(handle)?.recorded {
            Recorded::Never => Ok(None),
            Recorded::Work(tag) => Ok(Some(tag)),
            Recorded::Captured(point) => {
                self.invalidate(point.capture);
                Err(captured_event())
            }
        }
    }

    pub(super) fn event_query(&mut self, handle: Handle) -> Result<Option<Vec<u8>>, Refused> {
        let recorded = self.recorded(handle)?;
        self.take_done();
        self.sound()?;
        let done = recorded.is_none_or(|tag| self.is_reached(Until::Work(tag)));
        let done = u8::from(done);
        Ok(Some(EventQueryReply { done }.encode()))
    }

    pub(super) fn event_synchronize(
        &mut self,
        id: u32,
        handle: Handle,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let recorded = self.recorded(handle)?;
        // One that was never recorded has nothing before it.
        let until = Until::Work(recorded.unwrap_or(0));
        self.wait(id, Op::EventSynchronize, until)
    }

    pub(super) fn event_elapsed(
        &mut self,
        elapsed: &EventElapsed,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let events = [elapsed.start, elapsed.end];
        let mut keys = [0; 2];
        self.take_done();
        self.sound()?;
        for (handle, key) in events.into_iter().zip(&mut keys) {
            let recorded = self.recorded(handle)?;
            let event = *self.streams.event(handle)?;
            let error = match recorded {
                _ if !event.has_time => Some((INVALID_HANDLE, "has no time")),
                None => Some((INVALID_HANDLE, "was never recorded")),
                Some(tag) if !self.is_reached(Until::Work(tag)) => {
                    Some((NOT_READY, "has not come yet"))
                }
                Some(_) => None,
            };
            if let Some((code, words)) = error {
                let error = DeviceError::new(code, format!("{handle:?} {words}"));
                return Err(Failure::from(&error));
            }
            *key = event.key;
        }
        let between = self.device.elapsed_ns(keys[0], keys[1]);
        let nanoseconds = between.map_err(|error| self.failure(0, &error))?;
        Ok(Some(EventElapsedReply { nanoseconds }.encode()))
    }
}
