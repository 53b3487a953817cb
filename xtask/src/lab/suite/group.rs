//! Runs cases and checks for leftovers, several cases with one footprint.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::footprint::Footprint;
use super::{Case, Context, Mediator};
use crate::lab::host::{LIMIT, Lacking, Place};

/// Time for Xen and the kernels to free a case's resources: a grant is free only when its last
/// mapping and file are gone.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Fail(String),
    Skip(String),
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) verdict: Verdict,
    pub(super) seconds: f32,
}

/// Most cases that share a footprint: that many run once more if something was left behind.
const GROUP: usize = 10;

/// Most restarts of a case because the host lost its guest.
const LOST_GUESTS: u32 = 5;

/// Cases that have passed, except that their leftovers have not been checked.
struct Group {
    /// The footprint before the first case, with the guests and the mediator of that time.
    before: Footprint,
    state: State,
    /// Number of guests lost by the host until then.
    lost: usize,
    passed: Vec<(&'static Case, f32)>,
}

/// The running shared guests, and the mediator that the cases require.
type State = (Vec<String>, Mediator);

/// Runs cases and reports their results.
///
/// A footprint takes longer than many a case. So cases with the same requirements share one, before
/// the first and after the last. If it has changed, each of them runs once more with its own.
pub(super) struct Runner<'a> {
    context: &'a mut Context,
    say: &'a mut dyn FnMut(Line),
    /// Time for Xen and the kernels to free a case's resources.
    settle: Duration,
    /// The reason why nothing can run any more.
    unfit: Option<String>,
    group: Option<Group>,
    /// The last footprint, if nothing has run since.
    last: Option<(Footprint, State)>,
}

impl<'a> Runner<'a> {
    pub(super) fn new(context: &'a mut Context, say: &'a mut dyn FnMut(Line)) -> Self {
        let unfit = context.host.unfit();
        Runner {
            context,
            say,
            settle: SETTLE_LIMIT,
            unfit,
            group: None,
            last: None,
        }
    }

    /// Runs `cases`, which come in the order of [`super::runner`].
    pub(super) fn run(&mut self, cases: &[&'static Case]) {
        for &case in cases {
            let lost = self.context.host.guests_lost();
            let goes_on = self.context.suits(case)
                && !case.ends_machine
                && !case.ends_guest
                && self
                    .group
                    .as_ref()
                    .is_none_or(|group| group.passed.len() < GROUP && group.lost == lost);
            if !goes_on {
                self.close();
            }
            if let Some(reason) = self.unfit.clone() {
                self.conclude(case.name, Verdict::Skip(reason), 0.0);
                continue;
            }
            let (started, used) = (Instant::now(), self.context.host.processor_time());
            let verdict = self.unless_lost(case, Self::in_group);
            let seconds = started.elapsed().as_secs_f32();
            let used = (self.context.host.processor_time() - used).as_secs_f32();
            match (verdict, &mut self.group) {
                (Verdict::Pass, Some(group)) => {
                    // Its result is printed once its leftovers have been checked.
                    eprintln!(
                        "lab: {} has passed in {seconds:.1} s ({used:.1} s of processor time)",
                        case.name
                    );
                    group.passed.push((case, seconds));
                }
                (verdict, _) => {
                    let skipped = matches!(verdict, Verdict::Skip(_));
                    self.conclude(case.name, verdict, seconds);
                    if case.ends_machine && !skipped {
                        self.unfit = Some(format!("the machine has ended with {}", case.name));
                    }
                    // The leftovers of this one must not be attributed to those before it.
                    self.one_by_one();
                }
            }
        }
        self.close();
    }

    /// Reports the result of a case.
    fn conclude(&mut self, name: &str, verdict: Verdict, seconds: f32) {
        let verdict = match verdict {
            // Our own lab has everything that cases need: one that does not run has shown nothing.
            Verdict::Skip(reason) if self.context.host.lacks_nothing() => {
                Verdict::Fail(format!("not run: {reason}"))
            }
            Verdict::Fail(reason) if self.unfit.is_none() => {
                let logs = self.context.host.save_logs();
                if self.context.host.exec(Place::Dom0, "true", LIMIT).is_err() {
                    self.unfit = Some(format!("the machine has ended in {name}"));
                }
                Verdict::Fail(match logs {
                    Some(logs) => format!("{reason} (logs: {logs})"),
                    None => reason,
                })
            }
            other => other,
        };
        (self.say)(Line {
            name: name.to_owned(),
            verdict,
            seconds,
        });
    }

    /// Checks the leftovers of the group's cases.
    fn close(&mut self) {
        let Some(group) = self.group.take_if(|group| !group.passed.is_empty()) else {
            self.group = None;
            return;
        };
        let lost = self.context.host.guests_lost() != group.lost;
        let left = match lost {
            // The footprint of a lost guest proves nothing.
            true => Ok(Vec::new()),
            false => self.left_behind(&group.before, &group.state),
        };
        if !lost && left.as_ref().is_ok_and(Vec::is_empty) {
            for (case, seconds) in group.passed {
                self.conclude(case.name, Verdict::Pass, seconds);
            }
            return;
        }
        let reason = match left {
            Ok(left) => format!("left behind: {}", left.join(", ")),
            Err(error) => format!("{error:#}").replace('\n', " "),
        };
        let names: Vec<&str> = group.passed.iter().map(|(case, _)| case.name).collect();
        let names = names.join(", ");
        eprintln!("lab: each once more, with a footprint of its own: {names} ({reason})");
        self.group = Some(group);
        let all_passed = self.one_by_one();
        if all_passed && !lost {
            let reason = format!("{reason}, by one or all of {names}, which did not do so alone");
            self.conclude("footprint", Verdict::Fail(reason), 0.0);
        }
    }

    /// Runs the cases of the group once more, each with its own footprint, and reports their
    /// results. Returns whether all have passed.
    fn one_by_one(&mut self) -> bool {
        let mut all_passed = true;
        for (case, seconds) in self
            .group
            .take()
            .map_or_else(Vec::new, |group| group.passed)
        {
            let verdict = match self.unfit.clone() {
                // It had passed, and its leftovers can no longer be determined.
                Some(reason) => Verdict::Fail(format!("left behind: unknown, {reason}")),
                None => self.unless_lost(case, Self::alone),
            };
            all_passed &= verdict == Verdict::Pass;
            self.conclude(case.name, verdict, seconds);
        }
        all_passed
    }

    /// Runs a case; again, and loudly, if the emulator ended a guest under it: that proves nothing
    /// about the project.
    fn unless_lost(
        &mut self,
        case: &'static Case,
        run: fn(&mut Self, &'static Case) -> Result<()>,
    ) -> Verdict {
        for _ in 0..LOST_GUESTS {
            let lost = self.context.host.guests_lost();
            match verdict(run(self, case)) {
                Verdict::Fail(reason) if self.context.host.guests_lost() > lost => {
                    eprintln!(
                        "lab: {}: QEMU's emulation ended a guest (triple fault, see console.log), so \
                         it runs once more; it had failed with: {reason}",
                        case.name
                    );
                    // The old footprint counts a guest that is gone. With one of a group that
                    // begins here the case need not run a third time.
                    self.close();
                }
                verdict => return verdict,
            }
        }
        verdict(run(self, case))
    }

    /// Runs a case as one of the group, which begins with it if there is none.
    fn in_group(&mut self, case: &'static Case) -> Result<()> {
        self.prepare(case)?;
        if self.group.is_none() && !case.ends_machine && !case.ends_guest {
            let state = (self.context.running_guests(), case.mediator);
            self.group = Some(Group {
                before: self.footprint(&state)?,
                state,
                lost: self.context.host.guests_lost(),
                passed: Vec::new(),
            });
        }
        self.once(case)
    }

    /// Runs a case and checks its leftovers.
    fn alone(&mut self, case: &'static Case) -> Result<()> {
        self.prepare(case)?;
        let state = (self.context.running_guests(), case.mediator);
        let before = self.footprint(&state)?;
        self.once(case)?;
        let left = self.left_behind(&before, &state)?;
        if !left.is_empty() {
            bail!("left behind: {}", left.join(", "));
        }
        Ok(())
    }

    /// Sets up the requirements of a case.
    fn prepare(&mut self, case: &Case) -> Result<()> {
        let sound = self.context.suits(case) && self.context.sound;
        if !sound {
            self.last = None;
        }
        self.context.ensure_guests(case.guests)?;
        self.context.ensure_networked(case.networked)?;
        self.context.ensure_mediator(case.mediator)
    }

    /// The case itself.
    fn once(&mut self, case: &Case) -> Result<()> {
        self.last = None;
        self.context.sound = false;
        let outcome = (case.run)(self.context);
        if case.ends_machine {
            return outcome;
        }
        self.context.end_jobs(outcome.is_err());
        // Also after a failure: the next case relies on the state that this one promised.
        self.context.ensure_mediator(case.mediator)?;
        self.context.sound = outcome.is_ok();
        outcome
    }

    /// The present footprint, unless it is known.
    fn footprint(&mut self, state: &State) -> Result<Footprint> {
        match self.last.take() {
            Some((footprint, with)) if with == *state => Ok(footprint),
            _ => Footprint::take(self.context.host.as_mut(), &state.0),
        }
    }

    /// The differences from `before`, once Xen and the kernels have had their time.
    fn left_behind(&mut self, before: &Footprint, state: &State) -> Result<Vec<String>> {
        let deadline = Instant::now() + self.settle;
        loop {
            // Read before the footprint, so that the last check follows the deadline.
            let last_look = Instant::now() > deadline;
            let after = Footprint::take(self.context.host.as_mut(), &state.0)?;
            let left = before.differences(&after);
            if left.is_empty() || last_look {
                self.last = Some((after, state.clone()));
                return Ok(left);
            }
        }
    }
}

fn verdict(outcome: Result<()>) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Pass,
        Err(error) => match error.downcast_ref::<Lacking>() {
            Some(lacking) => Verdict::Skip(lacking.to_string()),
            None => Verdict::Fail(format!("{error:#}").replace('\n', " ")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::lab::guest::GuestSpec;
    use crate::lab::host::{Host, Output};

    /// A host whose footprint is one number, which scripts change.
    struct Counting {
        left: u64,
        /// Scripts that were run, without those for footprints.
        ran: Rc<RefCell<Vec<String>>>,
        own: bool,
        /// Guests that it has lost.
        lost: usize,
    }

    impl Host for Counting {
        fn describe(&self) -> String {
            "a test".to_owned()
        }

        fn unfit(&mut self) -> Option<String> {
            None
        }

        fn exec(&mut self, _: Place<'_>, script: &str, _: Duration) -> Result<Output> {
            let mut stdout = String::new();
            if script.contains("xl debug-keys") {
                stdout = format!("d1.granted-and-mapped {}\n", self.left);
            } else {
                self.ran.borrow_mut().push(script.to_owned());
            }
            let mut ran = self.ran.borrow_mut();
            match script {
                "leak" => self.left += 1,
                // Once only, as a race may.
                "leak once" if ran.iter().filter(|s| *s == script).count() == 1 => self.left += 1,
                _ => {}
            }
            let loses = script == "lose once" && ran.iter().filter(|s| *s == script).count() == 1;
            self.lost += usize::from(loses);
            ran.retain(|script| script != "true" && !script.contains("vgpu-mediatord"));
            Ok(Output {
                status: i32::from(loses),
                stdout,
                stderr: String::new(),
            })
        }

        fn guest_create(&mut self, _: &GuestSpec) -> Result<()> {
            bail!("no guests")
        }

        fn guest_destroy(&mut self, _: &str) -> Result<()> {
            bail!("no guests")
        }

        fn guest_domid(&mut self, _: &str) -> Result<u16> {
            bail!("no guests")
        }

        fn lacks_nothing(&self) -> bool {
            self.own
        }

        fn guests_lost(&self) -> usize {
            self.lost
        }

        fn save_logs(&mut self) -> Option<String> {
            None
        }
    }

    fn script(context: &mut Context, script: &str) -> Result<()> {
        context.succeed(Place::Dom0, script).map(drop)
    }

    static TIDY: Case = Case::new("a/tidy", &[], |c| script(c, "tidy"));
    static LEAKS: Case = Case::new("a/leaks", &[], |c| script(c, "leak"));
    static LEAKS_ONCE: Case = Case::new("a/leaks-once", &[], |c| script(c, "leak once"));
    static LOSES: Case = Case::new("a/loses", &[], |c| script(c, "lose once"));
    static FAILS: Case = Case::new("a/fails", &[], |_| bail!("wrong sums"));
    static ENDS: Case = Case::ends_guest("a/ends", &[], |c| script(c, "leak"));
    static LACKS: Case = Case::new("a/lacks", &[], |_| Err(Lacking("a moon".to_owned()).into()));

    /// The results of `cases`, and the scripts that ran.
    fn outcome(cases: &[&'static Case], own: bool) -> (Vec<(String, Verdict)>, Vec<String>) {
        let ran = Rc::default();
        let mut context = Context::new(Box::new(Counting {
            left: 0,
            ran: Rc::clone(&ran),
            own,
            lost: 0,
        }));
        let mut lines = Vec::new();
        let mut say = |line: Line| lines.push((line.name, line.verdict));
        let mut runner = Runner::new(&mut context, &mut say);
        runner.settle = Duration::ZERO;
        runner.run(cases);
        let ran = ran.borrow().clone();
        (lines, ran)
    }

    fn pass(name: &str) -> (String, Verdict) {
        (name.to_owned(), Verdict::Pass)
    }

    fn fail(name: &str, reason: &str) -> (String, Verdict) {
        (name.to_owned(), Verdict::Fail(reason.to_owned()))
    }

    /// The counts of a guest go with it.
    #[test]
    fn a_case_that_ends_a_guest_has_no_footprint_and_is_no_blame_to_others() {
        let (lines, ran) = outcome(&[&TIDY, &ENDS, &TIDY], true);
        assert_eq!(lines, [pass("a/tidy"), pass("a/ends"), pass("a/tidy")]);
        assert_eq!(ran, ["tidy", "leak", "tidy"]);
    }

    #[test]
    fn cases_that_leave_nothing_run_once() {
        let (lines, ran) = outcome(&[&TIDY, &TIDY, &TIDY], true);
        assert_eq!(lines, vec![pass("a/tidy"); 3]);
        assert_eq!(ran, ["tidy"; 3]);
    }

    #[test]
    fn a_leak_names_its_case() {
        let (lines, ran) = outcome(&[&TIDY, &LEAKS, &TIDY], true);
        let leak = "left behind: d1.granted-and-mapped 1 → 2";
        assert_eq!(
            lines,
            [pass("a/tidy"), fail("a/leaks", leak), pass("a/tidy")]
        );
        assert_eq!(ran, ["tidy", "leak", "tidy", "tidy", "leak", "tidy"]);
    }

    #[test]
    fn a_leak_that_does_not_come_again_is_a_failure_too() {
        let (lines, _) = outcome(&[&TIDY, &LEAKS_ONCE], true);
        let reason = "left behind: d1.granted-and-mapped 0 → 1, by one or all of a/tidy, \
                      a/leaks-once, which did not do so alone";
        assert_eq!(
            lines,
            [
                pass("a/tidy"),
                pass("a/leaks-once"),
                fail("footprint", reason)
            ]
        );
    }

    #[test]
    fn a_leak_before_a_failure_is_found() {
        let (lines, _) = outcome(&[&LEAKS, &FAILS, &TIDY], true);
        assert_eq!(
            lines,
            [
                fail("a/fails", "wrong sums"),
                fail("a/leaks", "left behind: d1.granted-and-mapped 1 → 2"),
                pass("a/tidy"),
            ]
        );
    }

    /// The cases of its group that had passed before need another footprint, and the case itself
    /// runs twice, not a third time.
    #[test]
    fn a_case_whose_guest_the_host_has_lost_begins_a_group() {
        let (lines, ran) = outcome(&[&TIDY, &LOSES, &TIDY], true);
        assert_eq!(lines, [pass("a/tidy"), pass("a/loses"), pass("a/tidy")]);
        assert_eq!(ran, ["tidy", "lose once", "tidy", "lose once", "tidy"]);
        let (lines, ran) = outcome(&[&LOSES, &TIDY], true);
        assert_eq!(lines, [pass("a/loses"), pass("a/tidy")]);
        assert_eq!(ran, ["lose once", "lose once", "tidy"]);
    }

    #[test]
    fn a_group_has_an_end() {
        let cases = vec![&TIDY; GROUP + 1];
        let (lines, ran) = outcome(&cases, true);
        assert_eq!(lines.len(), GROUP + 1);
        assert_eq!(ran.len(), GROUP + 1);
    }

    #[test]
    fn in_our_own_lab_a_skip_is_a_failure() {
        let (lines, _) = outcome(&[&LACKS], true);
        assert_eq!(lines, [fail("a/lacks", "not run: a moon")]);
        let (lines, _) = outcome(&[&LACKS], false);
        assert_eq!(
            lines,
            [("a/lacks".to_owned(), Verdict::Skip("a moon".to_owned()))]
        );
    }
}
