//! Data that the mediator sends back.

use std::time::{Duration, Instant};

use vgpu_protocol::op::Exchange;

use super::Client;
use crate::data::Data;
use crate::error::{Cause, Result};

impl Client {
    /// Sends `data` to the mediator, which sends the first bytes of it back into `back` while more of it goes.
    /// No device has to do with it: it shows what the way there can do. Returns how long it took.
    ///
    /// # Errors
    /// `back` is longer than `data`; the session failed.
    pub fn exchange(&mut self, data: &[u8], back: &mut [u8]) -> Result<Duration> {
        self.exchange_watched(data, back, |_| ())
    }

    /// Like [`exchange`](Self::exchange); `progress` receives how many bytes have come back. While it runs, no
    /// other client of the session goes on.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange).
    pub fn exchange_watched(
        &mut self,
        data: &[u8],
        back: &mut [u8],
        mut progress: impl FnMut(usize),
    ) -> Result<Duration> {
        const DOING: &str = "exchange";
        let start = Instant::now();
        if back.len() > data.len() {
            let (up, down) = (data.len(), back.len());
            let what = format!("{down} bytes back of {up}; no more come back than go");
            return Err(self.error(DOING, Cause::Input(what)));
        }
        if data.is_empty() {
            return Ok(start.elapsed());
        }
        let request = Exchange {
            up: data.len() as u64,
            down: back.len() as u64,
        };
        let mut data = Data {
            up: Data::up(data).up,
            ..Data::down(back).watched(&mut progress)
        };
        self.request_with(DOING, request, &mut data)?;
        Ok(start.elapsed())
    }
}
