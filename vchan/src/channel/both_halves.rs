#![forbid(unsafe_code)]
//! One wait for both directions of a channel.

use std::time::Duration;

use crate::channel::channel_state::Shared;
use crate::channel::look_then_sleep::{Waits, Wish};
use crate::channel::reader::Reader;
use crate::channel::writer::Writer;
use crate::error::Result;
use crate::waiting::comparison::Moved;
use crate::waiting::spin::Spin;

/// Both halves of a channel waiting together, with the reader's spin window.
pub(crate) struct Both<'a> {
    pub(crate) reader: &'a mut Reader,
    pub(crate) writer: &'a mut Writer,
    /// For a close: waits until the peer has read everything, and drops what arrives meanwhile.
    pub(crate) drains: bool,
}

impl Waits for Both<'_> {
    fn shared(&self) -> &Shared {
        &self.reader.shared
    }

    fn spin(&mut self) -> &mut Spin {
        &mut self.reader.spin
    }

    fn moved(&self) -> Moved {
        self.reader.moved()
    }

    fn has_moved(&self) -> bool {
        self.reader.has_moved() || self.writer.has_moved()
    }

    fn holds_out(&mut self, _polling_pays: bool) -> Option<Duration> {
        None
    }

    fn is_ready(&mut self, _wish: Wish) -> Result<bool> {
        if !self.drains {
            return Ok(self.reader.is_ready()? || self.writer.is_ready()?);
        }
        if self.writer.is_drained_or_over()? {
            return Ok(true);
        }
        self.reader.discard()?;
        Ok(false)
    }

    fn ask(&mut self, _wish: Wish) {
        self.reader.ask_for(1);
        match self.drains {
            true => self.writer.ask_for_drain(),
            false => self.writer.ask_for(1),
        }
    }

    fn withdraw(&mut self) {
        self.reader.no_longer_ask();
        self.writer.no_longer_ask();
    }
}
