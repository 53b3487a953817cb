//! The selection of cases, and the output of results.

use anyhow::{Result, bail};

use super::group::{Line, Runner, Verdict};
use super::{Case, Context, Mediator, TOPICS};
use crate::lab::guest::Kind;

/// The options of a run.
pub(crate) struct Options {
    /// Only cases whose name contains one of these, separated by commas, and none of those with a
    /// `!` before them.
    pub(crate) filter: Option<String>,
    /// One JSON object a line on standard output.
    pub(crate) json: bool,
}

/// The results of the cases of one or more hosts.
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

/// The cases that the filter selects. Those with the same requirements are adjacent, so that guests
/// and mediators are started seldom; those that need a PVH guest come late, and those that end the
/// machine last.
fn chosen(filter: &str) -> Vec<&'static Case> {
    let mut cases: Vec<_> = TOPICS
        .iter()
        .copied()
        .flatten()
        .filter(|case| is_chosen(case.name, filter))
        .collect();
    cases.sort_by_key(|case| {
        (
            case.ends_machine,
            case.guests.contains(&Kind::Pvh),
            case.ends_guest,
            case.networked,
            case.mediator == Mediator::Stopped,
        )
    });
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
    for name in cases(options.filter.as_deref().unwrap_or_default()) {
        println!("{name}");
    }
}

/// The names of the cases that a filter selects.
pub(crate) fn cases(filter: &str) -> Vec<&'static str> {
    chosen(filter).iter().map(|case| case.name).collect()
}

/// Runs the chosen cases on one host.
pub(crate) fn run(context: &mut Context, options: &Options, totals: &mut Totals) {
    let host = context.host.describe();
    println_unless(options.json, &format!("--- {host}"));
    let mut say = |line: Line| {
        let (word, reason) = match &line.verdict {
            Verdict::Pass => {
                totals.passed += 1;
                ("PASS", "")
            }
            Verdict::Skip(reason) => {
                totals.skipped += 1;
                ("SKIP", reason.as_str())
            }
            Verdict::Fail(reason) => {
                totals.failed += 1;
                ("FAIL", reason.as_str())
            }
        };
        let Line { name, seconds, .. } = &line;
        if options.json {
            let line = serde_json::json!({
                "name": name, "host": host, "result": word.to_lowercase(),
                "seconds": seconds, "reason": reason,
            });
            println!("{line}");
        } else if reason.is_empty() {
            println!("{word} {name:<44} {seconds:>6.1} s");
        } else {
            println!("{word} {name:<44} {seconds:>6.1} s  {reason}");
        }
    };
    let filter = options.filter.as_deref().unwrap_or_default();
    Runner::new(context, &mut say).run(&chosen(filter));
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
