//! What each frame of a guest means, and how it is answered. No I/O and no time.
//!
//! `docs/protocol.md` is the specification; where it leaves a choice, this mediator offers one lane,
//! runs one vector add at a time, and keeps later requests of the lane waiting until it is over.

use vgpu_protocol::MIN_VERSION;
use vgpu_protocol::VERSION;
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::message::{
    Features, Hello, HelloReply, InfoReply, Limits, Op, QuietFailure, QuietFailures, VectorAdd,
    negotiate_version,
};
use vgpu_protocol::status::{ErrorCode, Status};

use super::outbox::Reply;
use super::{Refusal, SessionEnd};

/// What a control frame calls for.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing: a quiet request that is done, or its failure noted.
    Nothing,
    /// An answer.
    Reply(Reply),
    /// Hello is sound: open the executor, then call [`Rules::admit`].
    Admit(FrameHeader),
    /// Run this vector add; its input follows.
    VectorAdd(FrameHeader, VectorAdd),
    /// Send the answer, then end the session.
    End(Reply, SessionEnd),
}

/// Where the body of a Data frame belongs.
#[derive(Debug)]
pub enum DataVerdict {
    /// To the vector add that runs.
    Running,
    /// Nowhere: its request has failed already.
    Discard,
    /// The frame belongs to nothing.
    End(Reply, SessionEnd),
}

/// A guest's request whose input is still arriving though it has failed.
#[derive(Debug)]
struct Discarded {
    request_id: u32,
    /// The stream to close at the end of the input, if the request had opened one.
    stream: Option<Handle>,
}

/// The state of a session that outlives its single requests.
#[derive(Debug)]
pub struct Rules {
    limits: Limits,
    /// What this mediator can do at most.
    able: Features,
    epoch: u64,
    refusal: Option<Refusal>,
    hello: Option<Hello>,
    /// Present once the guest is admitted.
    info: Option<InfoReply>,
    quiet: QuietFailures,
    streams: HandleTable<u32>,
    discarded: Vec<Discarded>,
}

impl Rules {
    /// A session that waits for Hello. With a `refusal`, Hello is all it will hear.
    pub fn new(limits: Limits, epoch: u64, refusal: Option<Refusal>) -> Self {
        Self {
            limits,
            able: Features::ALL,
            epoch,
            refusal,
            hello: None,
            info: None,
            quiet: QuietFailures::default(),
            streams: HandleTable::new(HandleKind::Stream, limits.max_handles),
            discarded: Vec::new(),
        }
    }

    /// Whether the guest has been admitted.
    pub fn is_open(&self) -> bool {
        self.info.is_some()
    }

    /// The name the guest gave itself, fit for a log.
    pub fn client_name(&self) -> Option<String> {
        let name = &self.hello.as_ref()?.client_name;
        Some(name.escape_debug().to_string())
    }

    /// Allows no more than `limits` and `features` either; to be called before
    /// [`admit`](Self::admit).
    pub fn narrow(&mut self, limits: Limits, features: Features) {
        let own = &self.limits;
        let max_chunk_elements = own.max_chunk_elements.min(limits.max_chunk_elements);
        self.limits = Limits {
            max_body: own.max_body.min(limits.max_body),
            max_lanes: own.max_lanes.min(limits.max_lanes),
            max_requests: own.max_requests.min(limits.max_requests),
            max_handles: own.max_handles.min(limits.max_handles),
            max_chunk_elements,
            // Whoever computes knows best, within what is allowed here.
            preferred_chunk_elements: limits.preferred_chunk_elements.min(max_chunk_elements),
            max_elements: own.max_elements.min(limits.max_elements),
        };
        self.streams = HandleTable::new(HandleKind::Stream, self.limits.max_handles);
        self.able = self.able.common(features);
    }

    /// Admits the guest: the reply to its Hello. `info` is what Info will answer.
    pub fn admit(&mut self, request: &FrameHeader, info: InfoReply) -> Reply {
        let hello = self.hello.as_ref();
        let reply = HelloReply {
            version: hello.and_then(negotiate_version).unwrap_or(VERSION),
            features: self.features(),
            limits: self.limits,
            epoch: self.epoch,
        };
        self.info = Some(info);
        Reply::ok(request, reply.encode())
    }

    /// Decides about a whole control frame.
    pub fn on_frame(&mut self, header: &FrameHeader, body: &[u8]) -> Verdict {
        if header.is_reply() {
            let what = format!("a reply ({}) from the guest, which only asks", header.op);
            return broken(Reply::closing(ErrorCode::Protocol.into(), &what), what);
        }
        let Some(info) = &self.info else {
            return self.on_first_frame(header, body);
        };
        if header.op == Op::Hello {
            let what = "a second Hello".to_owned();
            return broken(
                Reply::error(header, ErrorCode::Protocol.into(), &what),
                what,
            );
        }
        if header.lane >= self.limits.max_lanes {
            let text = format!(
                "lane {} was not offered; lanes are 0 to {}",
                header.lane,
                self.limits.max_lanes - 1
            );
            return self.fail(header, ErrorCode::Range.into(), &text);
        }
        let needed = match header.op {
            Op::VectorAdd => Features::VECTOR_ADD_F32,
            Op::Fence => Features::QUIET,
            _ if header.is_quiet() => Features::QUIET,
            _ => Features::default(),
        };
        if !self.features().contains(needed) {
            let text = format!("{} needs a feature that Hello did not agree on", header.op);
            return self.fail(header, ErrorCode::Unsupported.into(), &text);
        }
        match header.op {
            Op::Ping if header.is_quiet() => Verdict::Nothing,
            Op::Ping => Verdict::Reply(Reply::ok(header, body.to_vec())),
            Op::VectorAdd => self.on_vector_add(header, body),
            _ if !body.is_empty() => {
                let text = format!("{} has a body of {} bytes, 0 needed", header.op, body.len());
                self.fail(header, ErrorCode::Range.into(), &text)
            }
            Op::Info => Verdict::Reply(Reply::ok(header, info.encode())),
            Op::Fence => Verdict::Reply(Reply::ok(header, self.quiet.take().encode())),
            Op::Goodbye => Verdict::End(Reply::ok(header, Vec::new()), SessionEnd::Goodbye),
            // Hello was answered above and Data frames never come as control frames.
            Op::Hello | Op::Data => {
                self.fail(header, ErrorCode::Unsupported.into(), "not possible here")
            }
        }
    }

    /// Decides about the header of a Data frame. `running` is the request that takes input now.
    pub fn on_data(&mut self, header: &FrameHeader, running: Option<&FrameHeader>) -> DataVerdict {
        if let Some(request) = running.filter(|request| request.request_id == header.request_id) {
            if header.handle == request.handle && header.lane == request.lane {
                return DataVerdict::Running;
            }
        } else if let Some(index) = self
            .discarded
            .iter()
            .position(|discarded| discarded.request_id == header.request_id)
        {
            if !header.has_more() {
                let discarded = self.discarded.swap_remove(index);
                self.close_stream(discarded.stream);
            }
            return DataVerdict::Discard;
        }
        let what = format!(
            "Data for request {}, which takes no input like it",
            header.request_id
        );
        let reply = Reply::closing(ErrorCode::Protocol.into(), &what);
        DataVerdict::End(reply, SessionEnd::GuestFault(what))
    }

    /// Answers a request with an error. The input of a vector add is discarded from here on.
    pub fn fail(&mut self, header: &FrameHeader, status: Status, text: &str) -> Verdict {
        if header.op == Op::VectorAdd {
            return self.fail_input(header, None, Reply::error(header, status, text));
        }
        if header.is_quiet() {
            self.quiet.push(QuietFailure {
                request_id: header.request_id,
                op: header.op,
                status,
            });
            return Verdict::Nothing;
        }
        Verdict::Reply(Reply::error(header, status, text))
    }

    /// Ends a vector add that ran: `reply` is its final one. What its input still brings is
    /// discarded.
    pub fn finish(&mut self, request: &FrameHeader, input_ended: bool, reply: Reply) -> Verdict {
        if input_ended {
            self.close_stream(request.handle);
            return Verdict::Reply(reply);
        }
        self.fail_input(request, request.handle, reply)
    }

    fn fail_input(
        &mut self,
        request: &FrameHeader,
        stream: Option<Handle>,
        reply: Reply,
    ) -> Verdict {
        // A well-behaved guest ends one input before it starts another, so this fills up only when
        // a guest opens requests and never ends them.
        if self.discarded.len() >= usize::from(self.limits.max_requests) {
            let what = "more failed requests with open input than requests allowed".to_owned();
            return broken(Reply::closing(ErrorCode::Protocol.into(), &what), what);
        }
        self.discarded.push(Discarded {
            request_id: request.request_id,
            stream,
        });
        Verdict::Reply(reply)
    }

    fn close_stream(&mut self, stream: Option<Handle>) {
        if let Some(handle) = stream {
            // It was open: only a handle that the table took is ever passed here.
            let _ = self.streams.close(handle);
        }
    }

    fn features(&self) -> Features {
        let offered = self
            .hello
            .as_ref()
            .map_or(Features::default(), |hello| hello.features);
        self.able.common(offered)
    }

    fn on_first_frame(&mut self, header: &FrameHeader, body: &[u8]) -> Verdict {
        if header.op != Op::Hello {
            let what = format!("the first frame is {}, not Hello", header.op);
            return broken(
                Reply::error(header, ErrorCode::Protocol.into(), &what),
                what,
            );
        }
        let hello = match Hello::decode(body) {
            Ok(hello) => hello,
            Err(error) => {
                let what = error.to_string();
                return broken(
                    Reply::error(header, ErrorCode::Protocol.into(), &what),
                    what,
                );
            }
        };
        if let Some(refusal) = &self.refusal {
            let reply = Reply::error(header, refusal.code.into(), &refusal.text);
            return Verdict::End(reply, SessionEnd::Refused(refusal.clone()));
        }
        if negotiate_version(&hello).is_none() {
            let text = format!(
                "no version in common: the guest speaks {} to {}, the mediator {MIN_VERSION} to \
                 {VERSION}; update the older of the two",
                hello.min_version, hello.max_version
            );
            let reply = Reply::error(header, ErrorCode::Version.into(), &text);
            return Verdict::End(reply, SessionEnd::GuestFault(text));
        }
        self.hello = Some(hello);
        Verdict::Admit(*header)
    }

    fn on_vector_add(&mut self, header: &FrameHeader, body: &[u8]) -> Verdict {
        let job = match VectorAdd::decode(body) {
            Ok(job) => job,
            Err(error) => return self.fail(header, ErrorCode::Range.into(), &error.to_string()),
        };
        let limits = &self.limits;
        let chunk_bytes = u64::from(job.chunk_elements) * 2 * job.data_type.size() as u64;
        let text = if job.elements > limits.max_elements {
            format!(
                "{} elements, at most {} allowed",
                job.elements, limits.max_elements
            )
        } else if job.chunk_elements > limits.max_chunk_elements
            || chunk_bytes > u64::from(limits.max_body)
        {
            format!(
                "chunks of {} elements, at most {} allowed",
                job.chunk_elements, limits.max_chunk_elements
            )
        } else {
            return self.open_stream(header, job);
        };
        self.fail(header, ErrorCode::Range.into(), &text)
    }

    fn open_stream(&mut self, header: &FrameHeader, job: VectorAdd) -> Verdict {
        let input_open = |discarded: &Discarded| discarded.request_id == header.request_id;
        if self.discarded.iter().any(input_open) {
            let what = format!(
                "request {} again while its input is open",
                header.request_id
            );
            return broken(Reply::closing(ErrorCode::Protocol.into(), &what), what);
        }
        let opened = match header.handle {
            Some(handle) => self
                .streams
                .open(handle, header.request_id)
                .map(drop)
                .map_err(|error| error.to_string()),
            None => Err("a vector add needs a fresh stream handle".to_owned()),
        };
        match opened {
            Ok(()) => Verdict::VectorAdd(*header, job),
            Err(text) => self.fail(header, ErrorCode::Handle.into(), &text),
        }
    }
}

fn broken(reply: Reply, what: String) -> Verdict {
    Verdict::End(reply, SessionEnd::GuestFault(what))
}
