//! Streams and events.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::{
    EventCreate, EventElapsed, EventQuery, EventRecord, EventSynchronize, StreamCancel,
    StreamCreate, StreamQuery, StreamSynchronize, StreamWaitEvent,
};

use super::{Device, Dropped, explained, lock, told};
use crate::data::Data;
use crate::error::Result;

/// `CU_STREAM_NON_BLOCKING`.
pub(in crate::client) const NON_BLOCKING: u32 = 1;

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

/// An order of work of its own, beside that of other streams: every method of [`Device`] that sends work to
/// the device sends it to this stream when it is called on one. Destroyed when the last clone is dropped, once its
/// work is done.
///
/// ```no_run
/// # use vgpu_guest::{Client, Device, Options};
/// # let device = Device::new(Client::from_env(&Options::default())?)?;
/// let (one, other) = (device.new_stream()?, device.new_stream()?);
/// let there = one.clone_htod(&[1.0f32; 1000])?;
/// let event = one.record_event()?;
/// other.wait(&event)?;
/// let back = other.clone_dtoh(&there)?;
/// # Ok::<(), vgpu_guest::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Stream(Device);

#[derive(Debug)]
pub(super) struct Opened {
    device: Device,
    pub(super) handle: Handle,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.device.drop_on_device(Dropped::Stream(self.handle));
    }
}

/// A point in a stream, which others can wait for. Destroyed when it is dropped.
#[derive(Debug)]
pub struct Event {
    device: Device,
    handle: Handle,
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.drop_on_device(Dropped::Event(self.handle));
    }
}

/// How a stream is (`cuStreamCreateWithPriority`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOptions {
    /// Lower numbers first: blocks of its kernels begin before those of streams with higher ones. GPUs have few, as from 0
    /// down to -5, of which the nearest is taken.
    pub priority: i32,
    /// It runs beside the default stream (`CU_STREAM_NON_BLOCKING`). Otherwise the two wait for each other.
    pub non_blocking: bool,
}

impl Default for StreamOptions {
    /// As [`Device::new_stream`] makes them: of priority 0, beside the default stream.
    fn default() -> Self {
        Self {
            priority: 0,
            non_blocking: true,
        }
    }
}

impl Device {
    /// A stream that runs beside the default stream and all others.
    ///
    /// # Errors
    /// As many as this session may have are open; the session failed.
    pub fn new_stream(&self) -> Result<Stream> {
        self.new_stream_with(StreamOptions::default())
    }

    /// A stream as `options` say.
    ///
    /// # Errors
    /// Those of [`new_stream`](Self::new_stream).
    pub fn new_stream_with(&self, options: StreamOptions) -> Result<Stream> {
        const DOING: &str = "new stream";
        let handle = lock(&self.shared.session.streams).mint();
        let Some(stream) = handle else {
            return Err(self.wrong(DOING, "as many streams as this session may have"));
        };
        let opened = Opened {
            device: self.base(),
            handle: stream,
        };
        let request = StreamCreate {
            stream,
            flags: match options.non_blocking {
                true => NON_BLOCKING,
                false => 0,
            },
            priority: options.priority,
        };
        self.send(DOING, request)?;
        Ok(Stream(Self {
            stream: Some(Arc::new(opened)),
            ..self.base()
        }))
    }

    /// `stream` on this lane: what is called on it waits for no call of the lane that made the stream.
    ///
    /// # Errors
    /// The stream is of another session.
    pub fn on_stream(&self, stream: &Stream) -> Result<Stream> {
        self.check_session("use a stream", &stream.0)?;
        Ok(Stream(Self {
            stream: stream.0.stream.clone(),
            ..self.base()
        }))
    }

    /// An event that was not recorded yet.
    ///
    /// # Errors
    /// As many as this session may have are there; the session failed.
    pub fn new_event(&self) -> Result<Event> {
        self.event(0)
    }

    /// The same without a time (`CU_EVENT_DISABLE_TIMING`), which costs the device less to record.
    ///
    /// # Errors
    /// Those of [`new_event`](Self::new_event).
    pub fn new_event_without_timing(&self) -> Result<Event> {
        self.event(DISABLE_TIMING)
    }

    fn event(&self, flags: u32) -> Result<Event> {
        const DOING: &str = "new event";
        let handle = lock(&self.shared.session.events).mint();
        let Some(handle) = handle else {
            return Err(self.wrong(DOING, "as many events as this session may have"));
        };
        let event = Event {
            device: self.base(),
            handle,
        };
        let request = EventCreate {
            event: handle,
            flags,
        };
        self.send(DOING, request)?;
        Ok(event)
    }

    /// Has `event` come when this stream has done what was sent to it before; on a device, the default stream.
    ///
    /// # Errors
    /// The session failed.
    pub fn record(&self, event: &Event) -> Result<()> {
        const DOING: &str = "record an event";
        self.check_session(DOING, &event.device)?;
        let (event, stream) = (event.handle, self.stream_ref());
        self.send(DOING, EventRecord { event, stream })
    }

    /// A new event that comes when this stream has done what was sent to it before.
    ///
    /// # Errors
    /// Those of [`new_event`](Self::new_event).
    pub fn record_event(&self) -> Result<Event> {
        let event = self.new_event()?;
        self.record(&event)?;
        Ok(event)
    }

    /// Ends the kernels that were sent to this stream before, running or not, and returns how many it ended; on a device,
    /// those of the default stream. Each is a failure (`E_CANCELLED`) that the next wait tells. Copies and fills are done
    /// all the same. For a thread that waits meanwhile, this is called on another [`lane`](Self::lane).
    ///
    /// A GPU runs a kernel that it was given to its end or its deadline. Those that the mediator has not given to it yet
    /// are ended, and only they count.
    ///
    /// # Errors
    /// The executor is `cuda`, and there are some, all of which the GPU has already (`CUDA_ERROR_NOT_SUPPORTED`). The
    /// session failed.
    pub fn cancel(&self) -> Result<u32> {
        let stream = self.stream_ref();
        // Not what failed before, which would be asked for behind what this is to overtake: the next wait tells it.
        let reply = self
            .client()?
            .request("cancel kernels", StreamCancel { stream })?;
        Ok(reply.kernels)
    }

    /// Has what is sent to this stream from now on wait for `event`, as it was recorded last.
    ///
    /// # Errors
    /// The session failed.
    pub fn wait(&self, event: &Event) -> Result<()> {
        const DOING: &str = "wait for an event";
        self.check_session(DOING, &event.device)?;
        let (event, stream) = (event.handle, self.stream_ref());
        self.send(DOING, StreamWaitEvent { stream, event })
    }
}

impl Deref for Stream {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.0
    }
}

impl Stream {
    /// The same stream on a lane of its own, for another thread.
    ///
    /// # Errors
    /// Those of [`Client::lane`](crate::Client::lane).
    pub fn lane(&self) -> Result<Self> {
        Ok(Self(Device {
            stream: self.0.stream.clone(),
            ..self.0.lane()?
        }))
    }

    /// Waits until everything that was sent to this stream before is done. Returns how long the device ran kernels
    /// of this session since the last time that this was told to anybody.
    ///
    /// # Errors
    /// Something that was sent before has failed; the session failed.
    pub fn synchronize(&self) -> Result<Duration> {
        const DOING: &str = "synchronize a stream";
        let stream = self.0.stream_ref();
        let mut client = self.0.client()?;
        let reply = client.request(DOING, StreamSynchronize { stream });
        let reply = told(&mut client, DOING, reply)?;
        Ok(client.device_time(reply.device_ns))
    }

    /// Whether everything that was sent to this stream before is done.
    ///
    /// # Errors
    /// The context has ended; the session failed.
    pub fn is_done(&self) -> Result<bool> {
        let stream = self.0.stream_ref();
        let reply = self.0.ask("look at a stream", StreamQuery { stream })?;
        Ok(reply.done != 0)
    }
}

impl Event {
    /// Waits until it has come, as it was recorded last.
    ///
    /// # Errors
    /// Something that was sent before has failed; the session failed.
    pub fn synchronize(&self) -> Result<()> {
        const DOING: &str = "wait for an event";
        let request = EventSynchronize { event: self.handle };
        let mut data = Data::none();
        self.device
            .wait_with(DOING, request, &mut data, |reply| reply.device_ns)
    }

    /// Whether it has come, as it was recorded last, or was never recorded.
    ///
    /// # Errors
    /// The context has ended; the session failed.
    pub fn is_done(&self) -> Result<bool> {
        let event = self.handle;
        let reply = self.device.ask("look at an event", EventQuery { event })?;
        Ok(reply.done != 0)
    }

    /// The time from `start` to this one, on the device; nothing where it came before. Both have come.
    ///
    /// # Errors
    /// One of them has not come (`CUDA_ERROR_NOT_READY`), was never recorded or has no time (`CUDA_ERROR_INVALID_HANDLE`);
    /// the session failed.
    pub fn elapsed_since(&self, start: &Event) -> Result<Duration> {
        const DOING: &str = "time between events";
        self.device.check_session(DOING, &start.device)?;
        let request = EventElapsed {
            start: start.handle,
            end: self.handle,
        };
        let mut client = self.device.client()?;
        let reply = client.request(DOING, request);
        let reply = explained(&mut client, reply)?;
        Ok(Duration::from_nanos(reply.nanoseconds))
    }
}
