//! The session itself: how it is opened, what the mediator is, pings, fences, its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vchan::region::Regions;
use vgpu_protocol::op::field::Bytes;
use vgpu_protocol::op::{
    DeviceInfo, DeviceInfoReply, Fence, FenceReply, Goodbye, HelloReply, Info, InfoReply, MAX_PING,
    Op, Ping, Synchronize,
};
use vgpu_protocol::session::client::Violation;
use vgpu_transport::endpoint::{self, Endpoint};
use vgpu_transport::{Transport, TransportError};

use super::{Client, Session, lock};
use crate::connect::open_transport;
use crate::error::{Cause, Error, Result, Skipped};
use crate::options::{Options, after};
use crate::printed::{Printed, Printer};
use crate::pump::Lane;

impl Client {
    /// Opens a session with the first mediator that answers, trying `endpoints` in order.
    ///
    /// Each endpoint has [`Options::connect_timeout`] until its session is open. What was taken is
    /// logged, and said by [`endpoint`](Self::endpoint); what was tried before it, and why it was not
    /// used, by [`skipped`](Self::skipped).
    ///
    /// # Errors
    /// [`Cause::NoEndpoint`] with one reason for each endpoint; [`Cause::Interrupted`].
    pub fn connect(endpoints: &[Endpoint], options: &Options) -> Result<Self> {
        if endpoints.is_empty() {
            let cause = Cause::Input("no endpoint given; write xen: or local:PATH".into());
            return Err(Error::new("connect", None, cause));
        }
        let mut skipped = Vec::new();
        for endpoint in endpoints {
            match Self::connect_one(endpoint, options) {
                Ok((lane, agreed, regions)) => {
                    for skipped in &skipped {
                        log::info!("skipped {skipped}");
                    }
                    log::info!("using {endpoint} (epoch {:#018x})", agreed.epoch);
                    let endpoint = Some(endpoint.clone());
                    return Ok(Self::first(lane, agreed, regions, endpoint, skipped));
                }
                Err(Cause::Interrupted) => {
                    return Err(Error::new("connect", None, Cause::Interrupted));
                }
                Err(cause) => skipped.push(Skipped {
                    endpoint: endpoint.clone(),
                    error: Error::new("connect", None, cause),
                }),
            }
        }
        Err(Error::new("connect", None, Cause::NoEndpoint(skipped)))
    }

    /// Like [`connect`](Self::connect), with the endpoints in the environment variable
    /// `VGPU_ENDPOINT`, or `xen:` if it is not set.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect); [`Cause::Input`] when the variable is not a list of
    /// endpoints.
    pub fn from_env(options: &Options) -> Result<Self> {
        let text = match std::env::var("VGPU_ENDPOINT") {
            Ok(text) => text,
            Err(std::env::VarError::NotPresent) => Endpoint::Xen.to_string(),
            Err(std::env::VarError::NotUnicode(_)) => String::from("\u{fffd}"),
        };
        let endpoints = endpoint::parse_list(&text).map_err(|error| {
            Error::new(
                "connect",
                None,
                Cause::Input(format!("VGPU_ENDPOINT: {error}")),
            )
        })?;
        Self::connect(&endpoints, options)
    }

    fn connect_one(
        endpoint: &Endpoint,
        options: &Options,
    ) -> std::result::Result<(Lane, HelloReply, Option<Regions>), Cause> {
        let deadline = after(Instant::now(), options.connect_timeout);
        let (transport, regions) = open_transport(endpoint, options, deadline)?;
        let (lane, agreed) = Lane::open(transport, options, deadline)?;
        Ok((lane, agreed, regions))
    }

    /// Opens a session on a transport that is connected to a mediator already.
    ///
    /// # Errors
    /// The mediator refuses, does not answer in [`Options::connect_timeout`], or is not a mediator.
    pub fn over(transport: Box<dyn Transport>, options: &Options) -> Result<Self> {
        let deadline = after(Instant::now(), options.connect_timeout);
        let (lane, agreed) = Lane::open(transport, options, deadline)
            .map_err(|cause| Error::new("connect", None, cause))?;
        Ok(Self::first(lane, agreed, None, None, Vec::new()))
    }

    fn first(
        lane: Lane,
        agreed: HelloReply,
        regions: Option<Regions>,
        endpoint: Option<Endpoint>,
        skipped: Vec<Skipped>,
    ) -> Self {
        Self {
            header_lane: lane.number(),
            lane,
            session: Arc::new(Session::new(endpoint, skipped, agreed, regions)),
            quiet_failed: false,
            last_requests: Vec::new(),
        }
    }

    /// Another client of the same session, with a lane of its own: its requests and those of this client
    /// run side by side, each from its own thread.
    ///
    /// # Errors
    /// As many clients as the mediator offers lanes ([`HelloReply::max_lanes`]) are there.
    pub fn lane(&self) -> Result<Self> {
        let most = self.session.agreed.max_lanes.get();
        let lane = self
            .lane
            .another(most)
            .map_err(|cause| self.error("another lane", cause))?;
        Ok(Self {
            header_lane: lane.number(),
            lane,
            session: Arc::clone(&self.session),
            quiet_failed: false,
            last_requests: Vec::new(),
        })
    }

    /// The endpoint in use; `None` for a client made by [`over`](Self::over).
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.session.endpoint.as_ref()
    }

    /// The endpoints before it in the list, and why they were not used.
    pub fn skipped(&self) -> &[Skipped] {
        &self.session.skipped
    }

    /// The session's number, different for every session a mediator ever opens.
    pub fn epoch(&self) -> u64 {
        self.session.agreed.epoch
    }

    /// The limits and features of the session.
    pub fn limits(&self) -> &HelloReply {
        &self.session.agreed
    }

    /// Has `take` called with each line that kernels of this session print from now on, in place of writing it to
    /// standard output. Kernels print when they run; here it comes with the answer to a request, so a
    /// [`Device::synchronize`](crate::Device::synchronize) brings all that was printed before. `take` runs in the thread of
    /// that request and must not use the session.
    pub fn on_printed(&self, take: impl FnMut(Printed<'_>) + Send + 'static) {
        *self.printer() = Printer::new(Box::new(take));
    }

    /// Whether quiet requests had failed when the last request of this client was answered; the next
    /// [`fence`](Self::fence) of any client of the session says which.
    pub fn quiet_requests_failed(&self) -> bool {
        self.quiet_failed || !lock(&self.session.failures).is_empty()
    }

    /// The executor in use, and why it was chosen.
    ///
    /// # Errors
    /// The session failed.
    pub fn info(&mut self) -> Result<InfoReply> {
        self.request("info", Info {})
    }

    /// The devices that this guest may use, in the order of their numbers: what does not change about each. One of them may
    /// be chosen afterwards ([`Device::with_ordinal`](crate::Device::with_ordinal)), since looking uses none.
    ///
    /// ```no_run
    /// # use vgpu_guest::{Client, Device, Options};
    /// let mut client = Client::from_env(&Options::default())?;
    /// let devices = client.devices()?;
    /// let largest = (0..).zip(&devices).max_by_key(|(_, device)| device.total_memory);
    /// let ordinal = largest.map_or(0, |(ordinal, _)| ordinal);
    /// let device = Device::with_ordinal(client, ordinal)?;
    /// # Ok::<(), vgpu_guest::Error>(())
    /// ```
    ///
    /// # Errors
    /// The session has no devices; it failed.
    pub fn devices(&mut self) -> Result<Vec<DeviceInfoReply>> {
        const DOING: &str = "list the devices";
        let first = self.request(DOING, DeviceInfo { device: 0 })?;
        let others = 1..first.devices;
        let mut devices = vec![first];
        for device in others {
            devices.push(self.request(DOING, DeviceInfo { device })?);
        }
        Ok(devices)
    }

    /// Sends `payload` (at most 4096 bytes) there and back; returns how long that took.
    ///
    /// # Errors
    /// The session failed, or other bytes came back.
    pub fn ping(&mut self, payload: &[u8]) -> Result<Duration> {
        let ping = self.make_ping("ping", payload)?;
        let start = Instant::now();
        let reply = self.request("ping", ping)?;
        let elapsed = start.elapsed();
        if reply.payload.as_slice() != payload {
            let violation = Violation("answered a ping with other bytes".to_owned());
            return Err(self.broken("ping", violation));
        }
        Ok(elapsed)
    }

    /// Sends `payload` without waiting for an answer; if it fails, the next
    /// [`fence`](Self::fence) says so. It leaves with the next request at the latest. Returns the
    /// request id by which the fence would name it.
    ///
    /// # Errors
    /// The session failed, or the mediator does not offer quiet requests.
    pub fn ping_quiet(&mut self, payload: &[u8]) -> Result<u32> {
        let ping = self.make_ping("quiet ping", payload)?;
        self.send_quiet("quiet ping", ping)
    }

    fn make_ping(&self, doing: &'static str, payload: &[u8]) -> Result<Ping> {
        let bytes = Bytes::new(payload).ok_or_else(|| {
            let len = payload.len();
            let what = format!("a ping of {len} bytes; it may have at most {MAX_PING}");
            self.error(doing, Cause::Input(what))
        })?;
        Ok(Ping { payload: bytes })
    }

    /// Waits for everything that this client has sent before; returns the quiet requests of all clients
    /// of the session that failed since the fence before.
    ///
    /// # Errors
    /// The session failed, or the mediator does not offer fences.
    pub fn fence(&mut self) -> Result<FenceReply> {
        let told = self.ask_for_failures()?;
        let mut failures = std::mem::take(&mut *lock(&self.session.failures));
        failures.add_all(&told);
        Ok(failures)
    }

    /// Requests the mediator's list of failures, by a Fence.
    pub(super) fn ask_for_failures(&mut self) -> Result<FenceReply> {
        let told = self.request("fence", Fence {})?;
        lock(&self.session.heard).note(&told);
        Ok(told)
    }

    /// Ends the session in good order, for all its clients, once everything that was sent in it before is done. A kernel
    /// without an end keeps it waiting until its deadline: to leave at once, drop the clients.
    ///
    /// # Errors
    /// Something that was sent before and not waited for has failed, which nobody was told: [`Error::failures`] says what.
    /// The session had failed before, or fails now. It is over in any case.
    pub fn goodbye(mut self) -> Result<()> {
        self.end()
    }

    pub(super) fn end(&mut self) -> Result<()> {
        const DOING: &str = "goodbye";
        let settled = self.settle(DOING);
        self.printer().end_line();
        if let Err(error) = &settled
            && error.cause().ends_session()
        {
            return settled;
        }
        let ended = self.request(DOING, Goodbye {}).and_then(|_| {
            match self.lane.close() {
                // Having answered, the mediator may close first.
                Ok(()) | Err(TransportError::Closed) => Ok(()),
                Err(error) => Err(self.error(DOING, error.into())),
            }
        });
        settled.and(ended)
    }

    /// Waits for all that was sent.
    ///
    /// # Errors
    /// Something of it has failed, which nobody was told; the session has.
    fn settle(&mut self, doing: &'static str) -> Result<()> {
        let sent = |which: &AtomicBool| which.load(Ordering::Relaxed);
        let (quiet, work) = (&self.session.sent_quiet, &self.session.sent_work);
        let (quiet, work) = (sent(quiet), sent(work));
        let mut waited = Ok(());
        if work {
            waited = self.request(doing, Synchronize {}).map(drop);
        }
        match &waited {
            Ok(()) if !quiet || (work && !self.quiet_requests_failed()) => return Ok(()),
            Err(error) if error.cause().ends_session() => return waited,
            _ => {}
        }
        let told = self.fence()?;
        // What could not be given back is gone with the session.
        let mut failures = FenceReply {
            dropped: told.dropped,
            ..FenceReply::default()
        };
        let known = told.failures.as_slice().iter();
        known
            .filter(|failure| !gives_back(failure.op))
            .for_each(|failure| failures.add(*failure));
        // The context has ended, of which either this tells or somebody was told.
        if waited.is_err() && failures.failures.as_slice().is_empty() {
            failures.dropped = 0;
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(self.error(doing, Cause::Failed(failures))),
        }
    }
}

/// Whether an operation does nothing but give something back.
fn gives_back(op: Op) -> bool {
    matches!(
        op,
        Op::MemoryFree
            | Op::MemoryFreeAsync
            | Op::ModuleUnload
            | Op::StreamDestroy
            | Op::EventDestroy
            | Op::GraphDestroy
            | Op::GraphExecDestroy
            | Op::RegionUnmap
    )
}
