//! Sessions whose requests run on this machine's executor.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{Body, InfoReply, PingReply, Request};
use vgpu_protocol::status::ErrorCode;

use super::SessionEnd;
use super::backend::{Also, Backend, Event, NotOpened, Opened, SessionBackend};
use super::exchange::Exchanges;
use crate::executor::{Executor, ExecutorError, ProbeError};
use crate::policy::Share;
use crate::usage::Load;

/// Opens the session's executor, once, when a guest was admitted.
pub type OpenExecutor<'a> = &'a mut dyn FnMut() -> Result<Box<dyn Executor>, OpenError>;

/// No executor can be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct OpenError {
    /// [`ErrorCode::Busy`] where others have the device and waiting may help.
    pub code: ErrorCode,
    /// One line.
    pub text: String,
}

impl From<String> for OpenError {
    fn from(text: String) -> Self {
        Self {
            code: ErrorCode::BackendLost,
            text,
        }
    }
}

impl From<ProbeError> for OpenError {
    fn from(error: ProbeError) -> Self {
        let text = error.to_string();
        match error.source {
            ExecutorError::Busy { .. } => Self {
                code: ErrorCode::Busy,
                text,
            },
            _ => text.into(),
        }
    }
}

/// The executor, once a guest was admitted.
pub struct LocalBackend<'o> {
    open: OpenExecutor<'o>,
    /// Why the broker took it; overrides the executor's own word.
    reason: Option<String>,
    /// Objects of each kind that the guest may have.
    most_objects: u32,
    executor: Option<Box<dyn Executor>>,
    exchanges: Exchanges,
    events: VecDeque<Event>,
}

impl<'o> LocalBackend<'o> {
    /// A backend whose executor has yet to be opened.
    pub fn new(open: OpenExecutor<'o>, reason: Option<String>, most_objects: u32) -> Self {
        Self {
            open,
            reason,
            most_objects,
            executor: None,
            exchanges: Exchanges::default(),
            events: VecDeque::new(),
        }
    }

    /// The answer to Info.
    fn describe(&mut self) -> InfoReply {
        let info = self.executor().info().clone();
        let reason = self.reason.as_ref().unwrap_or(&info.reason);
        InfoReply {
            total_memory: info.total_memory,
            executor: info.kind.into(),
            device: info.device.as_str().into(),
            driver: info.driver.as_str().into(),
            reason: reason.as_str().into(),
            mediator: concat!("vgpu-mediatord ", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// The executor; the rules let nobody ask for anything before it is open.
    fn executor(&mut self) -> &mut dyn Executor {
        self.executor
            .as_deref_mut()
            .expect("opened with the session")
    }
}

impl fmt::Debug for LocalBackend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.executor.as_ref().map(|executor| executor.info());
        f.debug_struct("LocalBackend")
            .field("executor", &info)
            .finish_non_exhaustive()
    }
}

impl Backend for LocalBackend<'_> {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        let id = header.request_id;
        let body = match request {
            Request::Ping(ping) => PingReply {
                payload: ping.payload,
            }
            .encode(),
            Request::Info(_) => self.describe().encode(),
            // The rules keep it until those before it are over, and know which of them have failed.
            Request::Fence(_) => self.executor().take_failures().encode(),
            Request::Exchange(exchange) => return self.exchanges.start(id, exchange),
            request => return self.executor().start(header, request),
        };
        self.events.push_back(Event::Done(id, Ok(body)));
    }

    fn input(&mut self, id: u32) -> &mut [u8] {
        match self.exchanges.has(id) {
            true => self.exchanges.input(id),
            false => self.executor().input(id),
        }
    }

    fn filled(&mut self, id: u32, n: usize) {
        match self.exchanges.has(id) {
            true => self.exchanges.filled(id, n),
            false => self.executor().filled(id, n),
        }
    }

    fn output(&mut self, id: u32) -> &[u8] {
        match self.exchanges.has(id) {
            true => self.exchanges.output(id),
            false => self.executor().output(id),
        }
    }

    fn sent(&mut self, id: u32, n: usize) {
        match self.exchanges.has(id) {
            true => self.exchanges.sent(id, n),
            false => self.executor().sent(id, n),
        }
    }

    fn cancel(&mut self, id: u32) {
        self.exchanges.cancel(id);
        self.executor().cancel(id);
    }

    fn may_start(&self) -> bool {
        self.executor
            .as_ref()
            .is_none_or(|executor| executor.may_start())
    }

    fn load(&self) -> Load {
        let executor = self.executor.as_ref();
        executor.map(|executor| executor.load()).unwrap_or_default()
    }

    fn has_no_figures(&self) -> bool {
        true
    }

    fn next_event(&mut self) -> Option<Event> {
        let own = self.events.pop_front();
        if let Some(event) = own.or_else(|| self.exchanges.events.pop_front()) {
            return Some(event);
        }
        self.executor.as_mut()?.next_event()
    }

    fn also(&mut self) -> Also<'_> {
        match &mut self.executor {
            Some(executor) => executor.also(),
            None => Also::Nothing,
        }
    }

    fn due(&self) -> Option<Instant> {
        self.executor.as_ref()?.due()
    }
}

impl SessionBackend for LocalBackend<'_> {
    fn open(&mut self, _patience: Duration) -> Result<Opened, NotOpened> {
        let mut executor = (self.open)().map_err(|error| NotOpened {
            code: error.code,
            text: format!("the mediator cannot open its executor: {error}"),
            end: SessionEnd::ExecutorLost(error.text),
        })?;
        executor.set_share(Share {
            max_objects: Some(self.most_objects),
            ..Share::default()
        });
        let features = executor.features();
        self.executor = Some(executor);
        Ok(Opened {
            terms: None,
            features,
        })
    }
}
