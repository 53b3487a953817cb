//! `vgpuctl status` for people.

use vgpu_mediator::control::{Device, Guest, Reloaded, Session, Status, Warm};
use vgpu_mediator::usage::Usage;

use crate::figures::{bytes, count, duration, kills, memory, percent, shorten, table};
use crate::gpus;

pub(crate) fn render(status: &Status) -> String {
    let executor = &status.executor;
    let driver = match executor.driver.as_str() {
        "" => String::new(),
        driver => format!(", driver {driver}"),
    };
    let admitted = if status.allow_all {
        "all guests that no rule denies"
    } else {
        "guests that a rule allows"
    };
    let again = match status.looks_again_s {
        Some(seconds) => format!("; looked for again in {seconds} s"),
        None => String::new(),
    };
    let mut text = format!(
        "mediator   {} (pid {}), up {}{}\n\
         listening  {}\n\
         executor   {}: {}, {}{driver}\n\
         because    {}{again}\n\
         admits     {admitted}; {} of {} sessions in use, {} a guest\n\
         so far     {} sessions, {} refused; {}\n",
        status.version,
        status.pid,
        duration(status.uptime_s),
        if status.stopping { ", STOPPING" } else { "" },
        status.listen.join(", "),
        executor.kind,
        executor.device,
        bytes(executor.total_memory as f64),
        executor.reason,
        status.sessions.len(),
        status.limits.max_sessions,
        status.limits.max_sessions_per_guest,
        status.sessions_started,
        status.refused,
        sentence(&status.usage),
    );
    if let Some(warm) = &status.warm {
        text.push_str(&format!("warm       {}\n", in_words(warm)));
    }
    for missing in &status.missing_devices {
        text.push_str(&format!(
            "missing    {missing}; sessions that are to have it are refused\n"
        ));
    }
    if !status.gpus.is_empty() {
        text.push('\n');
        text.push_str(&gpus::table(&status.gpus));
    }
    if !status.guests.is_empty() {
        let heading = [
            "GUEST", "NOW", "SESSIONS", "REFUSED", "KILLS", "MEMORY", "QUEUE",
        ];
        let mut lines = vec![with_usage_heading(&heading)];
        lines[0].extend(["WEIGHT", "SHARE"].map(str::to_owned));
        let all = status.usage.device_ns;
        lines.extend(status.guests.iter().map(|it| guest(it, all)));
        // Only where somebody has not all of them.
        if status.guests.iter().any(|it| it.devices.is_some()) {
            lines[0].push("DEVICES".to_owned());
            let guests = status.guests.iter();
            for (cells, guest) in lines[1..].iter_mut().zip(guests) {
                cells.push(devices(guest, &executor.devices));
            }
        }
        text.push('\n');
        text.push_str(&table(&lines, 1));
    }
    if !status.sessions.is_empty() {
        let heading = [
            "SESSION", "GUEST", "STATE", "PROGRAM", "WORKER", "AGE", "MEMORY", "QUEUE",
        ];
        let mut lines = vec![with_usage_heading(&heading)];
        lines.extend(status.sessions.iter().map(session));
        // Only where there is a choice.
        if executor.devices.len() > 1 {
            lines[0].push("GPU".to_owned());
            let sessions = status.sessions.iter();
            for (cells, session) in lines[1..].iter_mut().zip(sessions) {
                let device = session.device.as_ref();
                cells.push(
                    device.map_or_else(|| "-".to_owned(), |it| number(it, &executor.devices)),
                );
            }
        }
        text.push('\n');
        text.push_str(&table(&lines, 4));
    }
    text
}

/// The warm workers, in one line.
fn in_words(warm: &Warm) -> String {
    let not = match warm.cold_endpoints.is_empty() {
        true => String::new(),
        false => format!("; not for sessions over {}", warm.cold_endpoints.join(", ")),
    };
    format!(
        "{} of {} workers ready; {} sessions had one, {} did not{not}",
        warm.ready(),
        warm.wanted,
        warm.sessions,
        warm.cold_sessions,
    )
}

/// Lines about what a reload has changed.
pub(crate) fn reloaded(reloaded: &Reloaded) -> String {
    let mut text = match reloaded.changed.is_empty() {
        true => format!("reloaded {}: nothing has changed\n", reloaded.file),
        false => format!(
            "reloaded {}: changed: {}\n",
            reloaded.file,
            reloaded.changed.join(", ")
        ),
    };
    if reloaded.denied_sessions > 0 {
        text.push_str(&format!(
            "sessions of guests that are denied now: {}; they go on until vgpuctl kick ends them\n",
            reloaded.denied_sessions
        ));
    }
    text
}

/// `all` is the device's time of all guests.
fn guest(guest: &Guest, all: u64) -> Vec<String> {
    let mut cells = vec![
        guest.guest.clone(),
        guest.sessions.to_string(),
        guest.sessions_started.to_string(),
        guest.refused.to_string(),
        kills(guest).to_string(),
        memory(&guest.standing),
        guest.standing.queue.to_string(),
    ];
    cells.extend(usage(&guest.usage));
    let weight = guest.weight.map(|weight| weight.to_string());
    cells.push(weight.unwrap_or_else(|| "-".to_owned()));
    cells.push(percent(guest.usage.device_ns as f64, all as f64));
    cells
}

/// A guest's devices by number, where they are there, as in `0,2`; `-` for all, or for none while it has no session.
fn devices(guest: &Guest, there: &[Device]) -> String {
    let Some(own) = &guest.devices else {
        return "-".to_owned();
    };
    let numbers = own.iter().map(|name| number(name, there));
    numbers.collect::<Vec<_>>().join(",")
}

/// The number of a device that `name` names, where it is there.
fn number(name: &str, there: &[Device]) -> String {
    let device = there.iter().find(|it| it.uuid == name);
    device.map_or_else(|| name.to_owned(), |it| it.index.to_string())
}

fn session(session: &Session) -> Vec<String> {
    let stale = if session.current { "" } else { "?" };
    let mut cells = vec![
        format!("{}{stale}", session.id),
        session.guest.clone(),
        session.state.clone(),
        shorten(session.client.as_deref().unwrap_or("-"), 24),
        session.pid.to_string(),
        duration(session.age_s),
        memory(&session.standing),
        session.standing.queue.to_string(),
    ];
    cells.extend(usage(&session.usage));
    cells
}

fn with_usage_heading(cells: &[&str]) -> Vec<String> {
    ["REQUESTS", "FAILED", "IN", "OUT", "DEVICE"]
        .iter()
        .fold(cells.to_vec(), |mut all, cell| {
            all.push(cell);
            all
        })
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn usage(usage: &Usage) -> [String; 5] {
    [
        count(usage.requests as f64),
        count(usage.failed_requests as f64),
        bytes(usage.bytes_in as f64),
        bytes(usage.bytes_out as f64),
        format!("{:.3} s", usage.device_ns as f64 / 1e9),
    ]
}

fn sentence(usage: &Usage) -> String {
    format!(
        "{} requests ({} failed), {} in, {} out, {:.3} s of device time",
        count(usage.requests as f64),
        count(usage.failed_requests as f64),
        bytes(usage.bytes_in as f64),
        bytes(usage.bytes_out as f64),
        usage.device_ns as f64 / 1e9,
    )
}
