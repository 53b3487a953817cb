//! The result of one point, and its output formats.

use std::time::Duration;

use serde_json::{Map, Value, json};
use vchan::Format;
use vgpu_cli::{Failure, print_line, print_object};

use super::points::Point;

/// The counted run of one point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) point: Point,
    /// Of the ring that carries the data; 0 where there is none.
    pub(crate) ring_bytes: usize,
    pub(crate) messages: u64,
    pub(crate) elapsed: Duration,
    /// Times this side rang the other.
    pub(crate) events_sent: u64,
    /// Format of the channel's pages; `None` where there is no channel.
    pub(crate) format: Option<Format>,
}

impl Figure {
    /// 10^6 bytes a second.
    fn megabytes_per_second(&self) -> f64 {
        let bytes = self.messages as f64 * f64::from(self.point.message_bytes);
        bytes / self.elapsed.as_secs_f64() / 1e6
    }

    /// For one message.
    fn microseconds(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e6 / self.messages as f64
    }

    /// One line.
    pub(crate) fn print(&self, as_json: bool) -> Result<(), Failure> {
        let Point {
            work,
            message_bytes,
        } = self.point;
        if as_json {
            return print_object(&self.object());
        }
        let name = work.name();
        if work.is_round_trip() {
            let micros = self.microseconds();
            print_line(format_args!(
                "{name:>12} {message_bytes:>6} B  {micros:>10.2} us/round trip"
            ))
        } else {
            let rate = self.megabytes_per_second();
            print_line(format_args!(
                "{name:>12} {message_bytes:>6} B  {rate:>10.1} MB/s"
            ))
        }
    }

    fn object(&self) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), self.point.work.name().into());
        object.insert("message_bytes".into(), self.point.message_bytes.into());
        object.insert("ring_bytes".into(), self.ring_bytes.into());
        let (name, value) = if self.point.work.is_round_trip() {
            ("us_per_round_trip", self.microseconds())
        } else {
            ("mb_per_s", self.megabytes_per_second())
        };
        object.insert(name.into(), json!((value * 1000.0).round() / 1000.0));
        object.insert("messages".into(), self.messages.into());
        object.insert("seconds".into(), json!(self.elapsed.as_secs_f64()));
        object.insert("events_sent".into(), self.events_sent.into());
        if let Some(format) = self.format {
            object.insert("format".into(), format.to_string().into());
        }
        Value::Object(object)
    }
}
