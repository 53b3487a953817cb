//! A kernel's counters for one program: interrupts of its channel's event channel, context
//! switches, processor time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::super::host::{Host, LIMIT, Place};

/// Unit of processor time in `/proc` (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Counts since the program or its event channel was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Since the domain booted.
    pub(super) uptime: Duration,
    /// Interrupts of the event channels that the program opened.
    pub(super) interrupts: u64,
    /// Context switches of all its threads, voluntary or not.
    pub(super) switches: u64,
    /// Processor time of all its threads.
    pub(super) cpu: Duration,
}

impl Counters {
    /// Reads the counters of the one process named `program`.
    ///
    /// # Errors
    /// There is no such process.
    pub(super) fn take(host: &mut dyn Host, place: Place<'_>, program: &str) -> Result<Self> {
        // The kernel names an event channel's interrupt after the program that opened the device.
        let script = format!(
            "p=$(pidof {program}) && read -r up rest </proc/uptime && echo \"up $up\" && \
             grep -F ' evtchn:{program}' /proc/interrupts; \
             sed 's/^/stat /' /proc/$p/stat; grep -h ctxt_switches /proc/$p/task/*/status"
        );
        let output = host.exec(place, &script, LIMIT)?;
        let text = output
            .text()
            .with_context(|| format!("{program} in {place}"))?;
        Self::parse(text, program).with_context(|| format!("the counters of {place}: {text}"))
    }

    /// The difference from `before` to this.
    pub(super) fn since(&self, before: &Self) -> Self {
        Counters {
            uptime: self.uptime.saturating_sub(before.uptime),
            interrupts: self.interrupts.saturating_sub(before.interrupts),
            switches: self.switches.saturating_sub(before.switches),
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }

    fn parse(text: &str, program: &str) -> Result<Self> {
        let mut counters = Counters::default();
        let interrupt = format!("evtchn:{program}");
        let (mut ports, mut threads, mut processes) = (0, 0, 0);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("up") => {
                    let seconds = words.next().context("no uptime")?.parse()?;
                    counters.uptime = Duration::try_from_secs_f64(seconds)?;
                }
                Some("stat") => {
                    // The name, in brackets, may contain blanks; utime and stime are fields 14 and
                    // 15.
                    let fields = line.rsplit(')').next().unwrap_or_default();
                    let fields: Vec<&str> = fields.split_whitespace().collect();
                    ensure!(fields.len() > 12, "a short stat line");
                    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
                    counters.cpu = Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
                    processes += 1;
                }
                Some("voluntary_ctxt_switches:" | "nonvoluntary_ctxt_switches:") => {
                    counters.switches += words.next().context("no count")?.parse::<u64>()?;
                    threads += 1;
                }
                // `  57:  1234  0   xen-dyn    -event     evtchn:vchan`: one column per processor.
                Some(number) if number.ends_with(':') && line.ends_with(&interrupt) => {
                    counters.interrupts += words
                        .map_while(|word| word.parse::<u64>().ok())
                        .sum::<u64>();
                    ports += 1;
                }
                _ => {}
            }
        }
        ensure!(
            ports > 0 && threads > 0 && processes == 1,
            "{ports} event channels, {processes} processes"
        );
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_one_program_are_added_up() {
        let stat = "stat 71 (vchan) S 1 71 71 0 -1 4194304 300 0 0 0 12 8 0 0 20 0 2 0";
        let text = format!(
            "up 61.25 40.00\n 57:  1200  34  xen-dyn    -event     evtchn:vchan\n\
             \x2058:  1  0  xen-dyn    -event     evtchn:vchan-c-peer\n{stat}\n\
             voluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n\
             voluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t0\n"
        );
        let counters = Counters::parse(&text, "vchan").unwrap();
        assert_eq!(counters.interrupts, 1234);
        assert_eq!(counters.switches, 43);
        assert_eq!(counters.cpu, Duration::from_millis(200));
        assert_eq!(counters.uptime, Duration::from_millis(61_250));
        let later = Counters {
            interrupts: 1240,
            ..counters
        };
        assert_eq!(later.since(&counters).interrupts, 6);
        assert!(Counters::parse("up 1.0 1.0\n", "vchan").is_err());
    }
}
