//! `vgpuctl top`: what each guest and each session does right now.

mod screen;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use vgpu_cli::Failure;
use vgpu_mediator::control::Status;
use vgpu_mediator::print::{is_terminal, print};
use vgpu_mediator::usage::{Standing, Usage};

use crate::figures::{bytes, count, duration, kills, memory, percent, shorten, table};
use crate::{Exit, fetch, gpus, print_json};

const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// The time that `--once` measures over.
const ONCE_INTERVAL: Duration = Duration::from_millis(500);

/// One guest's rates, and what it holds.
#[derive(Debug, PartialEq, Serialize)]
struct GuestRates {
    guest: String,
    guest_id: String,
    weight: Option<u32>,
    sessions: usize,
    memory: u64,
    memory_limit: u64,
    queue: u64,
    /// Part of the time in which the device worked for it, in percent.
    device_percent: f64,
    /// Of the time in which the device worked for anybody, in percent; none where it did not.
    device_share_percent: Option<f64>,
    requests_per_s: f64,
    failed_per_s: f64,
    bytes_in_per_s: f64,
    bytes_out_per_s: f64,
    /// Sessions and kernels ended by force so far.
    kills: u64,
}

impl GuestRates {
    fn standing(&self) -> Standing {
        Standing {
            memory: self.memory,
            memory_limit: self.memory_limit,
            queue: self.queue,
        }
    }
}

/// One session's rates.
#[derive(Debug, PartialEq, Serialize)]
struct Rates {
    session: u64,
    guest: String,
    guest_id: String,
    state: String,
    client: Option<String>,
    age_s: u64,
    requests_per_s: f64,
    bytes_in_per_s: f64,
    bytes_out_per_s: f64,
    /// Part of the time in which the device worked for it, in percent.
    device_percent: f64,
}

/// The state between two looks at the mediator.
#[derive(Debug)]
struct Look {
    status: Status,
    guests: Vec<GuestRates>,
    sessions: Vec<Rates>,
    /// Part of the time in which the device worked for anybody, in percent.
    device_percent: f64,
}

/// Looks at a mediator, one after the other.
struct Looks {
    control: PathBuf,
    before: (Status, Instant),
}

impl Looks {
    fn new(control: &Path) -> Result<Self, Failure> {
        Ok(Self {
            control: control.to_owned(),
            before: (fetch(control)?, Instant::now()),
        })
    }

    /// The next one, measured from the one before.
    fn next(&mut self) -> Result<Look, Failure> {
        let now = (fetch(&self.control)?, Instant::now());
        let before = &self.before.0;
        let elapsed = now.1.duration_since(self.before.1);
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let worked = now.0.usage.device_ns.saturating_sub(before.usage.device_ns);
        let look = Look {
            guests: guest_rates(before, &now.0, elapsed),
            sessions: rates(before, &now.0, elapsed),
            device_percent: worked as f64 / seconds / 1e7,
            status: now.0.clone(),
        };
        self.before = now;
        Ok(look)
    }
}

pub(crate) fn run(control: &Path, json: bool, once: bool) -> Result<ExitCode, Exit> {
    if !once && !json && is_terminal() {
        return terminal::run(control);
    }
    vgpu_cli::end_on_signals()?;
    // Into a file or a pipe go tables, one after the other.
    let mut looks = Looks::new(control)?;
    let mut between = "";
    loop {
        thread::sleep(if once {
            ONCE_INTERVAL
        } else {
            REFRESH_INTERVAL
        });
        let look = looks.next()?;
        if json {
            print_json(&serde_json::json!({
                "gpus": look.status.gpus,
                "guests": look.guests,
                "sessions": look.sessions,
            }))?;
        } else {
            let text = render(&look.status, &look.guests, &look.sessions);
            print(&format!("{between}{text}"))?;
            between = "\n";
        }
        if once {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Those that have a session, or had one in that time.
fn guest_rates(before: &Status, now: &Status, elapsed: Duration) -> Vec<GuestRates> {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    let all = now.usage.device_ns.saturating_sub(before.usage.device_ns);
    let mut rates = Vec::new();
    for guest in &now.guests {
        let old = before.guests.iter().find(|old| old.guest == guest.guest);
        let (old, new) = (old.map_or(Usage::default(), |old| old.usage), guest.usage);
        if guest.sessions == 0 && old == new {
            continue;
        }
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let worked = new.device_ns.saturating_sub(old.device_ns);
        rates.push(GuestRates {
            guest: guest.guest.clone(),
            guest_id: guest.id.clone(),
            weight: guest.weight,
            sessions: guest.sessions,
            memory: guest.standing.memory,
            memory_limit: guest.standing.memory_limit,
            queue: guest.standing.queue,
            device_percent: rate(old.device_ns, new.device_ns) / 1e7,
            device_share_percent: (all > 0).then(|| 100.0 * worked as f64 / all as f64),
            requests_per_s: rate(old.requests, new.requests),
            failed_per_s: rate(old.failed_requests, new.failed_requests),
            bytes_in_per_s: rate(old.bytes_in, new.bytes_in),
            bytes_out_per_s: rate(old.bytes_out, new.bytes_out),
            kills: kills(guest),
        });
    }
    rates
}

fn rates(before: &Status, now: &Status, elapsed: Duration) -> Vec<Rates> {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
    now.sessions
        .iter()
        .map(|session| {
            let old = before.sessions.iter().find(|old| old.id == session.id);
            // A session that is new has done all it did since then.
            let old = old.map_or(Usage::default(), |old| old.usage);
            let new = session.usage;
            Rates {
                session: session.id,
                guest: session.guest.clone(),
                guest_id: session.guest_id.clone(),
                state: session.state.clone(),
                client: session.client.clone(),
                age_s: session.age_s,
                requests_per_s: rate(old.requests, new.requests),
                bytes_in_per_s: rate(old.bytes_in, new.bytes_in),
                bytes_out_per_s: rate(old.bytes_out, new.bytes_out),
                device_percent: rate(old.device_ns, new.device_ns) / 1e7,
            }
        })
        .collect()
}

fn render(status: &Status, guests: &[GuestRates], rates: &[Rates]) -> String {
    let warm = match &status.warm {
        Some(warm) => format!(", {} of {} warm", warm.ready(), warm.wanted),
        None => String::new(),
    };
    let mut text = format!(
        "vgpu-mediatord {} pid {}, up {}, executor {} ({}), {} of {} sessions{warm}\n\n",
        status.version,
        status.pid,
        duration(status.uptime_s),
        status.executor.kind,
        status.executor.device,
        status.sessions.len(),
        status.limits.max_sessions,
    );
    if !status.gpus.is_empty() {
        text.push_str(&gpus::table(&status.gpus));
        text.push('\n');
    }
    let heading = [
        "GUEST", "SESSIONS", "MEMORY", "QUEUE", "DEVICE", "SHARE", "REQ/s", "FAILED/s", "IN/s",
        "OUT/s", "KILLS",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(guests.iter().map(|rates| {
        vec![
            rates.guest.clone(),
            rates.sessions.to_string(),
            memory(&rates.standing()),
            rates.queue.to_string(),
            format!("{:.0} %", rates.device_percent),
            rates
                .device_share_percent
                .map_or("-".to_owned(), |share| percent(share, 100.0)),
            count(rates.requests_per_s),
            count(rates.failed_per_s),
            bytes(rates.bytes_in_per_s),
            bytes(rates.bytes_out_per_s),
            rates.kills.to_string(),
        ]
    }));
    text.push_str(&table(&lines, 1));
    text.push('\n');
    let heading = [
        "SESSION", "GUEST", "STATE", "PROGRAM", "AGE", "REQ/s", "IN/s", "OUT/s", "DEVICE",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(rates.iter().map(|rates| {
        vec![
            rates.session.to_string(),
            rates.guest.clone(),
            rates.state.clone(),
            shorten(rates.client.as_deref().unwrap_or("-"), 24),
            duration(rates.age_s),
            count(rates.requests_per_s),
            bytes(rates.bytes_in_per_s),
            bytes(rates.bytes_out_per_s),
            format!("{:.0} %", rates.device_percent),
        ]
    }));
    text.push_str(&table(&lines, 4));
    text
}
