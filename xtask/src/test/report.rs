//! The results of a step, parsed from its output.

use std::time::Duration;

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// This machine cannot show any of it; its output gives the reason.
    Skipped,
}

/// One step that has ended.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    pub(super) tests: Tests,
}

/// The tests of a step, if it consists of tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tests {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// Names of the failed tests.
    pub(super) failures: Vec<String>,
    /// Tests that could not run here, each with its reason.
    pub(super) skipped: Vec<String>,
}

impl Tests {
    /// Parses the output of libtest's programs, of the lab's suite and of similar programs.
    pub(super) fn read(output: &str) -> Self {
        let mut tests = Tests::default();
        for line in output.lines().filter(|line| !line.starts_with("$ ")) {
            if let Some((_, skip)) = line.split_once("SKIPPED: ") {
                // As `test_skip::skipped` writes it, after the test's name where one thread runs
                // all.
                tests.skipped.push(skip.to_owned());
            } else if let Some(skip) = line.strip_prefix("SKIP ") {
                tests.skipped.push(words(skip));
            } else if let Some(fail) = line.strip_prefix("FAIL ") {
                tests
                    .failures
                    .extend(fail.split(' ').next().map(str::to_owned));
            } else if let Some(test) = line.strip_prefix("test ") {
                if let Some((name, reason)) = test.split_once(" ... ignored, ")
                    // Others are parts of tests, tools, or run by another step.
                    && reason.starts_with("needs ")
                    && !reason.contains("run by ")
                {
                    tests.skipped.push(format!("{name}: {reason}"));
                } else if let Some(name) = test.strip_suffix(" ... FAILED") {
                    tests.failures.push(name.to_owned());
                } else if test.starts_with("result: ") {
                    tests.count(test);
                }
            } else if line.ends_with(" skipped") {
                tests.count(line);
            }
        }
        tests
    }

    /// Adds `… 3 passed; 0 failed; …` or `3 passed, 0 failed, 0 skipped`.
    fn count(&mut self, line: &str) {
        let number = |word: &str| -> u64 {
            line.split_once(&format!(" {word}"))
                .and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok())
                .unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
    }
}

/// `text` with runs of white space collapsed.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Prints the skipped tests, the result of each step and the totals; returns the number of failed
/// steps.
pub(super) fn summary(reports: &[Report]) -> usize {
    let skips: Vec<_> = reports
        .iter()
        .flat_map(|report| report.tests.skipped.iter().map(move |skip| (report, skip)))
        .collect();
    if !skips.is_empty() {
        eprintln!("\n=== skipped ===");
    }
    for (report, skip) in &skips {
        eprintln!("SKIP {}: {skip}", report.name);
    }
    eprintln!("\n=== summary ===");
    for report in reports {
        let word = match report.outcome {
            Outcome::Passed => "PASS",
            Outcome::Failed => "FAIL",
            Outcome::Skipped => "SKIP",
        };
        let seconds = report.took.as_secs();
        match &report.tests {
            Tests {
                passed: 0,
                failed: 0,
                ..
            } => eprintln!("{word} {} ({seconds} s)", report.name),
            tests => eprintln!(
                "{word} {} ({seconds} s; tests: {} passed, {} failed, {} skipped)",
                report.name,
                tests.passed,
                tests.failed,
                tests.skipped.len()
            ),
        }
        for failure in &report.tests.failures {
            eprintln!("     FAIL {failure}");
        }
    }
    let count = |wanted| reports.iter().filter(|r| r.outcome == wanted).count();
    let (passed, failed) = (count(Outcome::Passed), count(Outcome::Failed));
    // A step without a test of its own counts as one.
    let empty =
        |report: &&Report| report.outcome == Outcome::Skipped && report.tests.skipped.is_empty();
    match skips.len() + reports.iter().filter(empty).count() {
        0 => println!("{passed} passed, {failed} failed"),
        skipped => println!("{passed} passed, {failed} failed, {skipped} skipped"),
    }
    failed
}

/// One run in one line.
pub(super) fn figures(reports: &[Report]) -> String {
    let sum = |number: fn(&Report) -> u64| reports.iter().map(number).sum::<u64>();
    let failures: Vec<&str> = reports
        .iter()
        .flat_map(|report| report.tests.failures.iter().map(String::as_str))
        .collect();
    let failed_steps = reports
        .iter()
        .filter(|report| report.outcome == Outcome::Failed)
        .count();
    format!(
        "steps: {} of {} passed; tests: {} passed, {} failed, {} skipped; {} s{}{}",
        reports.len() - failed_steps,
        reports.len(),
        sum(|report| report.tests.passed),
        sum(|report| report.tests.failed),
        sum(|report| report.tests.skipped.len() as u64),
        sum(|report| report.took.as_secs()),
        if failures.is_empty() { "" } else { ": " },
        failures.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_failures_and_skips_are_read_out_of_the_output() {
        let tests = Tests::read(
            "running 3 tests\n\
             test a::fine ... ok\n\
             SKIPPED: a::some (a/tests/x.rs:3): no tmpfs here\n\
             test a::alone ... SKIPPED: a test (a/tests/x.rs:9): no Xen\n\
             test a::gpu ... ignored, needs an NVIDIA GPU\n\
             test a::xen ... ignored, needs Xen: run by cargo xtask lab test\n\
             test a::part ... ignored, changes a limit of the process; run by case_37\n\
             test a::bad ... FAILED\n\
             test result: FAILED. 2 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             PASS vector-add/pv-1         1.0 s\n\
             FAIL vector-add/pv-2         1.0 s  wrong sums\n\
             SKIP vector-add/pv-3         0.0 s  no guest\n\
             1 passed, 1 failed, 1 skipped\n",
        );
        assert_eq!((tests.passed, tests.failed), (43, 2));
        assert_eq!(tests.failures, ["a::bad", "vector-add/pv-2"]);
        assert_eq!(
            tests.skipped,
            [
                "a::some (a/tests/x.rs:3): no tmpfs here",
                "a test (a/tests/x.rs:9): no Xen",
                "a::gpu: needs an NVIDIA GPU",
                "vector-add/pv-3 0.0 s no guest",
            ]
        );
    }

    #[test]
    fn the_mark_is_what_tests_write() {
        assert_eq!(test_skip::MARK, "SKIPPED: ");
    }

    #[test]
    fn a_run_is_one_line() {
        let report = |outcome, failures: &[&str]| Report {
            name: "x",
            outcome,
            took: Duration::from_secs(3),
            tests: Tests {
                passed: 4,
                failed: failures.len() as u64,
                failures: failures.iter().map(|f| (*f).to_owned()).collect(),
                skipped: vec!["y".to_owned()],
            },
        };
        assert_eq!(
            figures(&[
                report(Outcome::Passed, &[]),
                report(Outcome::Failed, &["z"])
            ]),
            "steps: 1 of 2 passed; tests: 8 passed, 1 failed, 2 skipped; 6 s: z"
        );
    }
}
