//! Runs cases, checks what they leave behind, prints the results.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::footprint::Footprint;
use super::{Case, Context, TOPICS};
use crate::lab::guest::Kind;
use crate::lab::host::{LIMIT, Lacking, Place};

/// How long Xen and the kernels may take to take back what a case had: a grant
/// is free only when its last mapping and file are gone.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// What to run and how to print it.
pub(crate) struct Options {
    /// Only cases whose name contains one of these, separated by commas, and none of those with a
    /// `!` before them.
    pub(crate) filter: Option<String>,
    /// One JSON object a line on standard output.
    pub(crate) json: bool,
}

/// How the cases of one or more hosts ended.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Totals {
    /// Prints the final line.
    ///
    /// # Errors
    /// A case failed, or none ran.
    pub(crate) fn finish(self, options: &Options) -> Result<()> {
        let Totals {
            passed,
            failed,
            skipped,
        } = self;
        if options.json {
            let line = serde_json::json!({"passed": passed, "failed": failed, "skipped": skipped});
            println!("{line}");
        } else {
            println!("{passed} passed, {failed} failed, {skipped} skipped");
        }
        if failed > 0 {
            bail!("{failed} of the lab's tests failed");
        }
        if passed == 0 {
            bail!("none of the lab's tests ran\n  see the reasons above, or the --filter");
        }
        Ok(())
    }
}

enum Verdict {
    Pass,
    Fail(String),
    Skip(String),
}

/// The cases of the filter: those that need a PVH guest late, so that it starts only once, and last
/// those that end the machine.
fn chosen(options: &Options) -> Vec<&'static Case> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let mut cases: Vec<_> = TOPICS
        .iter()
        .copied()
        .flatten()
        .filter(|case| is_chosen(case.name, filter))
        .collect();
    cases.sort_by_key(|case| (case.ends_machine, case.guests.contains(&Kind::Pvh)));
    cases
}

/// Whether `name` contains one of the filter's parts, if there are any, and none of those that
/// begin with `!`.
fn is_chosen(name: &str, filter: &str) -> bool {
    let parts = filter.split(',').filter(|part| !part.is_empty());
    let (refused, wanted): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.starts_with('!'));
    (wanted.is_empty() || wanted.iter().any(|part| name.contains(part)))
        && !refused.iter().any(|part| name.contains(&part[1..]))
}

/// Prints the names of the chosen cases.
pub(crate) fn list(options: &Options) {
    for case in chosen(options) {
        println!("{}", case.name);
    }
}

/// Runs the chosen cases on one host.
pub(crate) fn run(context: &mut Context, options: &Options, totals: &mut Totals) {
    let host = context.host.describe();
    println_unless(options.json, &format!("--- {host}"));
    let mut unfit = context.host.unfit();
    for case in chosen(options) {
        let started = Instant::now();
        let verdict = match &unfit {
            Some(reason) => Verdict::Skip(reason.clone()),
            None => run_unless_lost(context, case),
        };
        if case.ends_machine && !matches!(verdict, Verdict::Skip(_)) {
            unfit = Some(format!("the machine has ended with {}", case.name));
        }
        let seconds = started.elapsed().as_secs_f32();
        let (word, reason) = match verdict {
            Verdict::Pass => {
                totals.passed += 1;
                ("PASS", String::new())
            }
            Verdict::Skip(reason) => {
                totals.skipped += 1;
                ("SKIP", reason)
            }
            Verdict::Fail(reason) => {
                totals.failed += 1;
                let logs = context.host.save_logs();
                if context.host.exec(Place::Dom0, "true", LIMIT).is_err() {
                    unfit = Some(format!("the machine has ended in {}", case.name));
                }
                (
                    "FAIL",
                    logs.map_or(reason.clone(), |logs| format!("{reason} (logs: {logs})")),
                )
            }
        };
        if options.json {
            let line = serde_json::json!({
                "name": case.name, "host": host, "result": word.to_lowercase(),
                "seconds": seconds, "reason": reason,
            });
            println!("{line}");
        } else if reason.is_empty() {
            println!("{word} {:<44} {seconds:>6.1} s", case.name);
        } else {
            println!("{word} {:<44} {seconds:>6.1} s  {reason}", case.name);
        }
    }
}

/// How often a case starts over because the host lost its guest.
const LOST_GUESTS: u32 = 5;

/// Runs a case; again, and loudly, where the emulator ended a guest under it: that shows nothing
/// about the project.
fn run_unless_lost(context: &mut Context, case: &Case) -> Verdict {
    for _ in 0..LOST_GUESTS {
        let lost = context.host.guests_lost();
        match run_case(context, case) {
            Verdict::Fail(reason) if context.host.guests_lost() > lost => eprintln!(
                "lab: {}: QEMU's emulation ended a guest (triple fault, see console.log), so it \
                 runs once more; it had failed with: {reason}",
                case.name
            ),
            verdict => return verdict,
        }
    }
    run_case(context, case)
}

fn run_case(context: &mut Context, case: &Case) -> Verdict {
    match try_case(context, case) {
        Ok(()) => Verdict::Pass,
        Err(error) => match error.downcast_ref::<Lacking>() {
            Some(lacking) => Verdict::Skip(lacking.to_string()),
            None => Verdict::Fail(format!("{error:#}").replace('\n', " ")),
        },
    }
}

fn try_case(context: &mut Context, case: &Case) -> Result<()> {
    context.ensure_guests(case.guests)?;
    context.ensure_networked(case.networked)?;
    context.ensure_mediator(case.mediator)?;
    let guests = context.running_guests();
    let before = match context.unchanged.take() {
        Some((footprint, state)) if state == (guests.clone(), case.mediator) => footprint,
        _ => Footprint::take(context.host.as_mut(), &guests)?,
    };
    let outcome = (case.run)(context);
    if case.ends_machine {
        return outcome;
    }
    context.end_jobs(outcome.is_err());
    // Also after a failure: the next case shall find what this one promised.
    context.ensure_mediator(case.mediator)?;
    outcome?;
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let after = Footprint::take(context.host.as_mut(), &guests)?;
        let left = before.differences(&after);
        if left.is_empty() {
            context.unchanged = Some((after, (guests, case.mediator)));
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("left behind: {}", left.join(", "));
        }
    }
}

fn println_unless(json: bool, line: &str) {
    if !json {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::is_chosen;

    #[test]
    fn filters_choose_and_refuse() {
        assert!(is_chosen("interop/a", ""));
        assert!(is_chosen("interop/a", "vchan/,interop/"));
        assert!(!is_chosen("interop/a", "vchan/"));
        assert!(!is_chosen("interop/a", "interop/,!/a"));
        assert!(!is_chosen("interop/a", "!/a"));
        assert!(is_chosen("interop/b", "!/a"));
    }
}
