//! The systemd unit: whether systemd finds fault with it, and when its settings end restarts. What systemd does with
//! it is `systemd.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::said;

/// Where the unit is installed, below the root.
const UNIT: &str = "usr/lib/systemd/system/vgpu-mediatord.service";

/// Checks that systemd finds nothing wrong with the unit installed below `root`, and that it would.
/// `work` is a folder for a root with this machine's targets.
///
/// # Errors
/// It finds something.
pub(super) fn verify(root: &Path, work: &Path) -> Result<()> {
    let place = work.join("unit");
    for name in ["usr/bin/vgpu-mediatord", "usr/bin/vgpuctl", UNIT] {
        let to = place.join(name);
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::copy(root.join(name), to).with_context(|| format!("copying {name}"))?;
    }
    let units = place.join(UNIT);
    let units = units.parent().context("a folder")?;
    for entry in fs::read_dir("/lib/systemd/system").context("systemd's own units")? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|it| it == "target") {
            fs::copy(entry.path(), units.join(entry.file_name()))?;
        }
    }
    let found = complaints(&place)?;
    ensure!(found.is_empty(), "systemd-analyze: {found}");
    let text = fs::read_to_string(root.join(UNIT))?;
    fs::write(place.join(UNIT), text.replace("Type=notify", "Type=notfy"))?;
    ensure!(
        complaints(&place)?.contains("notfy"),
        "systemd-analyze finds no fault in a wrong unit"
    );
    Ok(())
}

fn complaints(root: &Path) -> Result<String> {
    let mut root_flag = std::ffi::OsString::from("--root=");
    root_flag.push(root);
    let output = Command::new("systemd-analyze")
        .arg(root_flag)
        .args(["--man=no", "verify"])
        .arg(Path::new(UNIT).file_name().context("a name")?)
        .output()
        .context("cannot start systemd-analyze")?;
    Ok(said(&output))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result, ensure};

    const SHIPPED: &str = include_str!("../../../../dist/mediator/vgpu-mediatord.service");

    /// Lines of systemd's own for each failed start: starting, the main process's end, the result, the failure, the
    /// restart that is planned, and its number.
    const LINES_OF_A_START: usize = 6;

    /// Lines of systemd's own when it gives up.
    const LINES_AT_THE_END: usize = 3;

    /// Lines that may reach the journal before systemd gives up, and seconds until then.
    const MOST_LINES: usize = 60;
    const MOST_SECONDS: u64 = 60;

    /// The settings that end restarts.
    #[derive(Debug, PartialEq, Eq)]
    struct Limits {
        restart_s: u64,
        burst: u32,
        interval_s: u64,
    }

    impl Limits {
        fn of(unit: &str) -> Result<Self> {
            let number = |name| -> Result<u64> {
                let value = setting(unit, name)?;
                value
                    .parse()
                    .with_context(|| format!("{name}={value} is no number of seconds"))
            };
            let limits = Self {
                restart_s: number("RestartSec")?,
                burst: u32::try_from(number("StartLimitBurst")?)?,
                interval_s: number("StartLimitInterval")?,
            };
            // A start may take as long again as the pause before it, and all are still in one interval.
            ensure!(
                2 * limits.seconds() <= limits.interval_s,
                "{limits:?}: slow failures never reach the limit"
            );
            Ok(limits)
        }

        /// Seconds from the first start to the one that is refused, of a mediator that fails at once.
        fn seconds(&self) -> u64 {
            self.restart_s * u64::from(self.burst)
        }

        fn lines(&self, of_one_start: usize) -> usize {
            self.burst as usize * (of_one_start + LINES_OF_A_START) + LINES_AT_THE_END
        }
    }

    /// The value of a setting of the unit.
    fn setting<'u>(unit: &'u str, name: &str) -> Result<&'u str> {
        let mut lines = unit.lines().filter_map(|line| line.split_once('='));
        let (_, value) = lines
            .find(|(key, _)| *key == name)
            .with_context(|| format!("the unit has no {name}"))?;
        Ok(value.trim())
    }

    #[test]
    fn a_mediator_that_cannot_start_is_given_up_within_a_minute_and_some_lines() {
        let limits = Limits::of(SHIPPED).expect("limits");
        assert!(limits.seconds() < MOST_SECONDS, "{limits:?}");
        // What it prints where xenstore is missing: the reason and the remedy, after two lines of its start.
        assert!(limits.lines(4) < MOST_LINES, "{limits:?}");
    }

    #[test]
    fn a_worker_that_is_killed_for_want_of_memory_ends_its_own_session_alone() {
        assert_eq!(setting(SHIPPED, "OOMPolicy").unwrap(), "continue");
        let score: i32 = setting(SHIPPED, "OOMScoreAdjust").unwrap().parse().unwrap();
        assert!(score > 0);
    }

    #[test]
    fn a_unit_that_would_go_on_for_ever_is_refused() {
        let endless = SHIPPED.replace("StartLimitInterval=120", "StartLimitInterval=10");
        assert!(Limits::of(&endless).is_err());
        let none = SHIPPED.replace("StartLimitBurst=4\n", "");
        assert!(Limits::of(&none).is_err());
    }
}
