//! A session with a mediator.

mod vector_add;

use std::time::{Duration, Instant};

use vgpu_protocol::endpoint::{self, Endpoint};
use vgpu_protocol::frame::{Flags, FrameHeader, MAX_CONTROL_BODY};
use vgpu_protocol::handle::{HandleKind, HandleMinter};
use vgpu_protocol::message::{Features, FenceReply, Hello, HelloReply, InfoReply, Limits, Op};
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::{Transport, TransportError};

use crate::connect::open_transport;
use crate::error::{Cause, Error, Left, Result};
use crate::options::{Options, after};
use crate::session::Wire;

pub use vector_add::VectorAddReport;

/// An open session with a mediator.
///
/// One request at a time. After an error [`Error::retry`] says whether the client can still be
/// used. Dropping it without [`goodbye`](Self::goodbye) is safe on both sides: the mediator frees
/// what belonged to the session, and nothing is left in xenstore.
#[derive(Debug)]
pub struct Client {
    pub(crate) wire: Wire,
    endpoint: Option<Endpoint>,
    left: Vec<Left>,
    hello: HelloReply,
    last_request_id: u32,
    streams: HandleMinter,
    /// The error that ended the session.
    over: Option<String>,
}

impl Client {
    /// Opens a session with the first mediator that answers, trying `endpoints` in order.
    ///
    /// Each endpoint has [`Options::connect_timeout`] until its session is open. What was taken is
    /// logged, and said by [`endpoint`](Self::endpoint); what was left, and why, by
    /// [`left`](Self::left).
    ///
    /// # Errors
    /// [`Cause::NoEndpoint`] with one reason for each endpoint; [`Cause::Interrupted`].
    pub fn connect(endpoints: &[Endpoint], options: &Options) -> Result<Self> {
        if endpoints.is_empty() {
            let cause = Cause::Input("no endpoint given; write xen: or local:PATH".into());
            return Err(Error::new("connect", None, cause));
        }
        let mut left = Vec::new();
        for endpoint in endpoints {
            match Self::connect_one(endpoint, options) {
                Ok(mut client) => {
                    for left in &left {
                        log::info!("left {left}");
                    }
                    log::info!("using {endpoint} (session {:#018x})", client.epoch());
                    client.left = left;
                    return Ok(client);
                }
                Err(error) if matches!(error.cause(), Cause::Interrupted) => return Err(error),
                Err(error) => left.push(Left {
                    endpoint: endpoint.clone(),
                    error,
                }),
            }
        }
        Err(Error::new("connect", None, Cause::NoEndpoint(left)))
    }

    /// Like [`connect`](Self::connect), with the endpoints in the environment variable
    /// `VGPU_ENDPOINT`, or `xen:` if it is not set.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Cause::Input`] when the variable holds something else.
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

    fn connect_one(endpoint: &Endpoint, options: &Options) -> Result<Self> {
        let deadline = after(Instant::now(), options.connect_timeout);
        let transport = open_transport(endpoint, options, deadline)
            .map_err(|cause| Error::new("connect", None, cause))?;
        let mut client = Self::start(transport, options, deadline)?;
        client.endpoint = Some(endpoint.clone());
        Ok(client)
    }

    /// Opens a session on a transport that is connected to a mediator already.
    ///
    /// # Errors
    /// The mediator refuses, does not answer in [`Options::connect_timeout`], or is none.
    pub fn over(transport: Box<dyn Transport>, options: &Options) -> Result<Self> {
        Self::start(
            transport,
            options,
            after(Instant::now(), options.connect_timeout),
        )
    }

    fn start(transport: Box<dyn Transport>, options: &Options, deadline: Instant) -> Result<Self> {
        // Until the session is open, the time that is left to connect limits every wait.
        let handshake = Options {
            stall_timeout: deadline.saturating_duration_since(Instant::now()),
            ..options.clone()
        };
        let mut wire = Wire::new(transport, handshake);
        let hello =
            say_hello(&mut wire, options).map_err(|cause| Error::new("connect", None, cause))?;
        wire.set_options(options.clone());
        Ok(Self {
            wire,
            endpoint: None,
            left: Vec::new(),
            hello,
            last_request_id: 1,
            streams: HandleMinter::new(HandleKind::Stream, hello.limits.max_handles),
            over: None,
        })
    }

    /// The endpoint in use; `None` for a client made by [`over`](Self::over).
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// The endpoints before it in the list, and why they were left.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// The session's number, different for every session a mediator ever opens.
    pub fn epoch(&self) -> u64 {
        self.hello.epoch
    }

    /// What the session may ask for.
    pub fn limits(&self) -> &Limits {
        &self.hello.limits
    }

    /// What executes the work, and why that.
    ///
    /// # Errors
    /// The session failed.
    pub fn info(&mut self) -> Result<InfoReply> {
        self.request("info", |client| {
            let request = client.next_request(Op::Info);
            Ok(InfoReply::decode(&client.wire.call(request, &[])?)?)
        })
    }

    /// Sends `payload` (at most 4096 bytes) there and back; returns how long that took.
    ///
    /// # Errors
    /// The session failed, or other bytes came back.
    pub fn ping(&mut self, payload: &[u8]) -> Result<Duration> {
        self.request("ping", |client| {
            let request = client.ping_request(payload)?;
            let start = Instant::now();
            let echoed = client.wire.call(request, payload)?;
            let elapsed = start.elapsed();
            if echoed != payload {
                return Err(Cause::Protocol("a ping came back with other bytes".into()));
            }
            Ok(elapsed)
        })
    }

    /// Sends `payload` without waiting for an answer; if it fails, the next
    /// [`fence`](Self::fence) says so. It leaves with the next request at the latest. Returns the request id by which the fence would name it.
    ///
    /// # Errors
    /// The session failed, or the mediator knows no quiet requests.
    pub fn ping_quiet(&mut self, payload: &[u8]) -> Result<u32> {
        self.request("quiet ping", |client| {
            client.needs(Features::QUIET, Op::Ping)?;
            let request = client.ping_request(payload)?.with_flags(Flags::QUIET);
            client.wire.send(request, payload)?;
            Ok(request.request_id)
        })
    }

    /// Waits for everything sent before it; returns the quiet requests that failed since the last.
    ///
    /// # Errors
    /// The session failed, or the mediator knows no fences.
    pub fn fence(&mut self) -> Result<FenceReply> {
        self.request("fence", |client| {
            client.needs(Features::QUIET, Op::Fence)?;
            let request = client.next_request(Op::Fence);
            Ok(FenceReply::decode(&client.wire.call(request, &[])?)?)
        })
    }

    /// Ends the session in good order.
    ///
    /// # Errors
    /// The session had failed before, or fails now. It is over in any case.
    pub fn goodbye(mut self) -> Result<()> {
        self.request("goodbye", |client| {
            let request = client.next_request(Op::Goodbye);
            client.wire.call(request, &[])?;
            match client.wire.close() {
                // Having answered, the mediator may close first.
                Err(Cause::Transport(TransportError::Closed)) => Ok(()),
                closed => closed,
            }
        })
    }

    fn ping_request(&mut self, payload: &[u8]) -> std::result::Result<FrameHeader, Cause> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if len > MAX_CONTROL_BODY {
            return Err(Cause::Input(format!(
                "a ping of {len} bytes; it may have at most {MAX_CONTROL_BODY}"
            )));
        }
        Ok(self.next_request(Op::Ping).with_body_len(len))
    }

    pub(crate) fn next_request(&mut self, op: Op) -> FrameHeader {
        // 0 is never a request's id.
        self.last_request_id = self.last_request_id.checked_add(1).unwrap_or(1);
        FrameHeader::request(op, self.last_request_id)
    }

    fn needs(&self, feature: Features, op: Op) -> std::result::Result<(), Cause> {
        if self.hello.features.contains(feature) {
            return Ok(());
        }
        let text = "this mediator did not offer it when the session was opened".to_owned();
        Err(Cause::Refused {
            op,
            status: ErrorCode::Unsupported.into(),
            text,
        })
    }

    /// Runs one request and remembers an error that ends the session.
    pub(crate) fn request<T>(
        &mut self,
        doing: &'static str,
        run: impl FnOnce(&mut Self) -> std::result::Result<T, Cause>,
    ) -> Result<T> {
        let epoch = Some(self.hello.epoch);
        if let Some(why) = &self.over {
            return Err(Error::new(doing, epoch, Cause::SessionOver(why.clone())));
        }
        run(self).map_err(|cause| {
            let ends = cause.ends_session();
            let error = Error::new(doing, epoch, cause);
            if ends {
                self.over = Some(error.to_string());
            }
            error
        })
    }
}

fn say_hello(wire: &mut Wire, options: &Options) -> std::result::Result<HelloReply, Cause> {
    let hello = Hello {
        min_version: vgpu_protocol::MIN_VERSION,
        max_version: vgpu_protocol::VERSION,
        features: Features::ALL,
        client_name: options.client_name.clone(),
    };
    let body = hello.encode();
    // At most 80 bytes.
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let reply = wire.call(FrameHeader::request(Op::Hello, 1).with_body_len(len), &body)?;
    let reply = HelloReply::decode(&reply)?;
    if !(hello.min_version..=hello.max_version).contains(&reply.version) {
        return Err(Cause::Protocol(format!(
            "the mediator chose version {}, which was not offered",
            reply.version
        )));
    }
    Ok(reply)
}
