//! A configuration read again while the mediator runs: what may differ, and what does.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vgpu_cli::Failure;

use super::{Config, Limits};
use crate::cli::Flags;

/// Rules that a list of changes names; of more it gives the number.
const MOST_NAMED: usize = 8;

impl Config {
    /// Reads the file of this configuration again, as [`load`](Self::load) did, and the files with secrets.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`check_secrets`](Self::check_secrets); there is no file; or a setting differs
    /// that only a start can change.
    pub fn load_again(&self, flags: &Flags) -> Result<Self, Failure> {
        let Some(file) = &self.file else {
            return Err(Failure::new(
                "this mediator was started without a configuration file",
                "there is nothing to read again: restart it with other flags, or with --config FILE",
            ));
        };
        let new = Self::read(flags, file, open_regular)?;
        let fixed = self.fixed_that_differ(&new);
        if !fixed.is_empty() {
            return Err(Failure::new(
                format!(
                    "{}: only a restart can change {}",
                    file.display(),
                    fixed.join(", ")
                ),
                "restart the mediator (systemctl restart vgpu-mediatord), which ends its sessions, or take that \
                 back and reload",
            ));
        }
        new.check_secrets()?;
        Ok(new)
    }

    /// Settings of which a running mediator has made something that it does not change.
    fn fixed_that_differ(&self, new: &Self) -> Vec<&'static str> {
        let (old_worker, new_worker) = (&self.worker, &new.worker);
        let fixed = [
            ("listen", self.listen == new.listen),
            ("executor", self.executor == new.executor),
            ("control", self.control == new.control),
            ("metrics", self.metrics == new.metrics),
            ("worker.confine", old_worker.confine == new_worker.confine),
            (
                "worker.first_user",
                old_worker.first_user == new_worker.first_user,
            ),
        ];
        names_of(&fixed)
    }

    /// The names of what a reload changes: settings as `limits.weight`, rules as `name:web-1`.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let settings = [
            ("allow_all", self.policy.allow_all == new.policy.allow_all),
            ("secrets", self.secrets == new.secrets),
            ("relay_secret", self.relay_secret == new.relay_secret),
            ("worker.compile", self.worker.compile == new.worker.compile),
            (
                "worker.compile_timeout_s",
                self.worker.compile_timeout_s == new.worker.compile_timeout_s,
            ),
            (
                "worker.warm_workers",
                self.worker.warm_workers == new.worker.warm_workers,
            ),
        ];
        let mut all: Vec<String> = names_of(&settings).into_iter().map(str::to_owned).collect();
        all.extend(self.limits.differences(&new.limits));
        let (old_rules, new_rules) = (&self.policy.guests, &new.policy.guests);
        let gone = old_rules.keys().filter(|key| !new_rules.contains_key(key));
        let differ = new_rules
            .iter()
            .filter(|(key, rule)| old_rules.get(key) != Some(rule))
            .map(|(key, _)| key);
        let rules: Vec<String> = differ.chain(gone).map(ToString::to_string).collect();
        let more = rules.len().saturating_sub(MOST_NAMED);
        all.extend(rules.into_iter().take(MOST_NAMED));
        if more > 0 {
            all.push(format!("{more} more rules"));
        }
        all
    }
}

/// Opens a regular file: a FIFO or a terminal can be read at a start, but not by a program that goes on meanwhile.
fn open_regular(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK a FIFO would not be opened until there is a writer.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

impl Limits {
    fn differences(&self, new: &Self) -> Vec<String> {
        // By name, so that a new limit cannot be left out here.
        let table = |limits: &Self| match toml::Value::try_from(limits) {
            Ok(toml::Value::Table(table)) => table,
            _ => toml::Table::new(),
        };
        let (old, new) = (table(self), table(new));
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        let differ = names
            .into_iter()
            .filter(|name| old.get(*name) != new.get(*name));
        differ.map(|name| format!("limits.{name}")).collect()
    }
}

/// The names of those that are not the same.
fn names_of(settings: &[(&'static str, bool)]) -> Vec<&'static str> {
    let differ = settings.iter().filter(|(_, same)| !same);
    differ.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const BEFORE: &str =
        "listen = 'local:/a'\n[limits]\nweight = 2\n[guests]\nweb = 'allow'\ndb = 'allow'\n";

    fn flags() -> Flags {
        Flags::default()
    }

    fn reloaded(path: &Path, before: &Config, text: &str) -> Result<Config, Failure> {
        fs::write(path, text).unwrap();
        before.load_again(&flags())
    }

    #[test]
    fn a_file_read_again_may_change_rules_and_limits_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        fs::write(&path, BEFORE).unwrap();
        let before = Config::read(&flags(), &path, open_regular).unwrap();
        let same = before.load_again(&flags()).unwrap();
        assert_eq!(before.differences(&same), [""; 0]);

        let text = "listen = 'local:/a'\nallow_all = true\n[limits]\nweight = 3\nmemory_mib = 5\n[guests]\n\
                    web = 'deny'\n7 = 'allow'\n";
        let after = reloaded(&path, &before, text).unwrap();
        let wanted = [
            "allow_all",
            "limits.memory_mib",
            "limits.weight",
            "domid:7",
            "name:web",
            "name:db",
        ];
        assert_eq!(before.differences(&after), wanted);
        // The other way round, what is not set any more differs too.
        assert_eq!(after.differences(&before)[1], "limits.memory_mib");

        let text = "listen = ['local:/a', 'local:/b']\nexecutor = 'cpu'\ncontrol = '/c'\nmetrics = '127.0.0.1:1'\n[worker]\nconfine = 'off'\n\
                    first_user = 5000\n";
        let what = reloaded(&path, &before, text).unwrap_err().what;
        let names = "only a restart can change listen, executor, control, metrics, worker.confine, worker.first_user";
        assert!(what.ends_with(names), "{what}");

        let text = format!("{BEFORE}nonsense = 3\n");
        let what = reloaded(&path, &before, &text).unwrap_err().what;
        assert!(what.contains("m.toml, line 7: "), "{what}");
        fs::remove_file(&path).unwrap();
        let what = before.load_again(&flags()).unwrap_err().what;
        assert!(what.starts_with("cannot read the configuration"), "{what}");
    }

    #[test]
    fn a_file_is_regular_and_of_a_bounded_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        let what = || {
            Config::read(&flags(), &path, open_regular)
                .unwrap_err()
                .what
        };
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(what().ends_with("it is no regular file"), "{}", what());
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'\n'; 1 << 20]).unwrap();
        assert_eq!(what(), "nothing to listen on");
        fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
        assert!(what().ends_with("longer than 1048576 bytes"), "{}", what());
    }

    #[test]
    fn many_rules_are_counted() {
        let rules: String = (1..=12).map(|n| format!("{n} = 'allow'\n")).collect();
        let load = |rules: &str| {
            let text = format!("listen = 'local:/a'\n[guests]\n{rules}");
            Config::from_text(&flags(), Path::new("m.toml"), &text).unwrap()
        };
        let differences = load("").differences(&load(&rules));
        assert_eq!(differences.len(), 9);
        assert_eq!(differences[8], "4 more rules");
    }
}
