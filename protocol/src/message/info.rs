//! Info: what executes the work.

use bytemuck::{Pod, Zeroable};

use super::{MessageError, bounded, split_front, take_text};
use crate::le::{U16, U64};
use crate::status::printable;

/// Longest text in an [`InfoReply`], in bytes.
pub const MAX_INFO_TEXT: usize = 512;

/// What executes the session's work, and why this.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InfoReply {
    /// `cuda`, `cpu` or `relay`.
    pub executor: String,
    /// The device's name.
    pub device: String,
    /// Its memory in bytes.
    pub total_memory: u64,
    /// Driver name and version.
    pub driver: String,
    /// One line: why the mediator took this executor.
    pub reason: String,
    /// Name and version of the mediator.
    pub mediator: String,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawInfo {
    total_memory: U64,
    /// Lengths of executor, device, driver, reason and mediator.
    text_len: [U16; 5],
    reserved: [U16; 3],
}

const MESSAGE: &str = "InfoReply";

impl InfoReply {
    /// The body; texts that are too long are cut.
    pub fn encode(&self) -> Vec<u8> {
        let texts = [
            &self.executor,
            &self.device,
            &self.driver,
            &self.reason,
            &self.mediator,
        ]
        .map(|text| bounded(text, MAX_INFO_TEXT));
        let raw = RawInfo {
            total_memory: self.total_memory.into(),
            // Each at most MAX_INFO_TEXT.
            text_len: texts.map(|text| u16::try_from(text.len()).unwrap_or(0).into()),
            reserved: [0.into(); 3],
        };
        let mut body = bytemuck::bytes_of(&raw).to_vec();
        texts
            .iter()
            .for_each(|text| body.extend_from_slice(text.as_bytes()));
        body
    }

    /// Reads the body. Control characters in the texts are replaced: they go to a terminal.
    ///
    /// # Errors
    /// Wrong length, a text that is too long or not UTF-8.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let (raw, mut rest): (RawInfo, _) = split_front(MESSAGE, body)?;
        let field = |field, value: U16, rule| MessageError::Field {
            message: MESSAGE,
            field,
            value: value.get().into(),
            rule,
        };
        for value in raw.reserved {
            if value.get() != 0 {
                return Err(field("reserved", value, "not 0"));
            }
        }
        let mut text = |name, len: U16| {
            if usize::from(len.get()) > MAX_INFO_TEXT {
                return Err(field(name, len, "at most 512 bytes"));
            }
            take_text(MESSAGE, name, &mut rest, len.get().into()).map(printable)
        };
        let [executor, device, driver, reason, mediator] = raw.text_len;
        let info = Self {
            total_memory: raw.total_memory.get(),
            executor: text("executor", executor)?,
            device: text("device", device)?,
            driver: text("driver", driver)?,
            reason: text("reason", reason)?,
            mediator: text("mediator", mediator)?,
        };
        match rest {
            [] => Ok(info),
            extra => Err(MessageError::Length {
                message: MESSAGE,
                len: body.len(),
                wanted: body.len() - extra.len(),
            }),
        }
    }
}
