//! Input from administrators and workers: the configuration, and lines of JSON.

use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vgpu_mediator::cli::Flags;
use vgpu_mediator::config::Config;
use vgpu_mediator::control::{Request, Response};
use vgpu_mediator::lines::LineBuffer;
use vgpu_mediator::worker::{link::Report, spec::Spec};

/// The configuration file.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let parse = |text: &str| Config::from_text(&Flags::default(), Path::new("f.toml"), text);
    if let Ok(config) = parse(text) {
        let shown = config.to_toml();
        assert_eq!(parse(&shown).ok(), Some(config), "{shown}");
    }
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../dist/mediator/mediatord.toml").to_vec(),
        b"listen = \"xen:,local:/a\"\nexecutor = \"cpu\"\n[limits]\nmax_sessions = 3\n[guests]\n\
          web-1 = \"allow\"\n\"domid:7\" = { allow = true, max_sessions = 2 }\n7 = \"deny\"\n"
            .to_vec(),
        b"listen = [\"file:/d\"]\ncontrol = \"/c\"\nallow_all = true\n".to_vec(),
    ]
}

/// Delivers bytes in portions.
struct Portions<'a>(&'a [u8], usize);

impl Read for Portions<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.len().min(self.1).min(buf.len());
        let (now, later) = self.0.split_at(n);
        buf[..n].copy_from_slice(now);
        self.0 = later;
        Ok(n)
    }
}

/// Lines of JSON on the control socket and between worker and broker.
pub(crate) fn lines(data: &[u8]) {
    const LONGEST: usize = 4096;
    let Some((portion, data)) = data.split_first() else {
        return;
    };
    let mut stream = Portions(data, usize::from(*portion).max(1));
    let mut buffer = LineBuffer::new(LONGEST);
    let mut lines = Vec::new();
    while let Ok(received) = buffer.read(&mut stream) {
        lines.extend(received.lines);
        if received.closed {
            break;
        }
    }
    for line in lines {
        assert!(line.len() <= LONGEST && !line.contains('\n'));
        same_again::<Request>(&line);
        same_again::<Response>(&line);
        same_again::<Report>(&line);
        same_again::<Spec>(&line);
    }
}

fn same_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(line: &str) {
    if let Ok(value) = serde_json::from_str::<T>(line) {
        let shown = serde_json::to_string(&value).expect("what was read can be written");
        assert_eq!(serde_json::from_str::<T>(&shown).ok(), Some(value));
    }
}

pub(crate) fn lines_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"v":1,"op":"status"}"#,
        r#"{"v":1,"op":"kick","guest":"session:3"}"#,
        r#"{"v":1,"kicked":2}"#,
        r#"{"v":1,"error":{"what":"no such guest","advice":"see vgpuctl status"}}"#,
        r#"{"connected":true,"client":"vgpu","usage":{"bytes_in":7},"ended":{"text":"x","fault":false}}"#,
    ]
    .into_iter()
    .map(|line| format!("\u{10}{line}\n").into_bytes())
    .collect()
}
