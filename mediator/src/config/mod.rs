//! The mediator's configuration: a TOML file, overridden by flags, checked as a whole.

mod file;
mod limits;
mod metrics;
mod paths;
mod reload;
mod worker;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vgpu_cli::Failure;
use vgpu_socket_transport::{Secret, Secrets};
use vgpu_transport::endpoint::Endpoint;

use crate::cli::Flags;
use crate::devices::{Device, DeviceKey, Devices};
use crate::executor::ExecutorChoice;
use crate::policy::Policy;
use file::ConfigFile;
pub use limits::Limits;
pub use metrics::MetricsAddress;
pub(crate) use paths::ROOT_CONTROL;
use paths::absolute;
pub use paths::default_control_path;
pub use worker::{MOST_WARM, WorkerSettings};

/// A configuration that was checked and can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from, if there is one.
    pub file: Option<PathBuf>,
    /// Endpoints on which guests are served; not empty, no duplicates.
    pub listen: Vec<Endpoint>,
    /// The file with the secrets of those who connect over `tcp:`; set wherever `listen` has one.
    pub secrets: Option<PathBuf>,
    /// The executor that runs their work.
    pub executor: ExecutorChoice,
    /// The file with this mediator's secret for the one it relays to over TCP.
    pub relay_secret: Option<PathBuf>,
    /// The socket for `vgpuctl`.
    pub control: PathBuf,
    /// Where it serves its metrics, if it does.
    pub metrics: Option<MetricsAddress>,
    /// Rules for its guests.
    pub policy: Policy,
    /// How much of it.
    pub limits: Limits,
    /// How workers run.
    pub worker: WorkerSettings,
}

/// Path of the configuration that packages install.
pub const INSTALLED: &str = "/etc/vgpu/mediatord.toml";

/// Longest configuration file, in bytes: thousands of rules.
const MAX_FILE: u64 = 1 << 20;

const FIX_FILE: &str = "correct it and test it with vgpu-mediatord --config FILE --check-config; \
                        man mediatord.toml describes every setting";

impl Config {
    /// Reads the file that `flags` name, lets the flags override it, and checks the result. Where they name
    /// neither a file nor endpoints, the file is [`INSTALLED`], if it is there.
    ///
    /// # Errors
    /// An unreadable or wrong file, with the line, or settings that contradict each other.
    pub fn load(flags: &Flags) -> Result<Self, Failure> {
        Self::load_or(flags, Path::new(INSTALLED))
    }

    fn load_or(flags: &Flags, installed: &Path) -> Result<Self, Failure> {
        let path = match &flags.config {
            Some(path) => path,
            None if flags.listen.is_empty() && installed.exists() => &installed.to_owned(),
            None => return Self::merge(flags, ConfigFile::default()),
        };
        // A reload means the same file, wherever this process is then.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Self::read(flags, &path, |path| File::open(path))
    }

    /// Reads the file at `path`, which is absolute.
    fn read(
        flags: &Flags,
        path: &Path,
        open: impl FnOnce(&Path) -> io::Result<File>,
    ) -> Result<Self, Failure> {
        let text = open(path).and_then(read_text).map_err(|error| {
            Failure::system(
                format!("cannot read the configuration {}", path.display()),
                error,
                "check the path after --config and the file's permissions",
            )
        })?;
        let config = Self::from_text(flags, path, &text)?;
        Ok(Self {
            file: Some(path.to_owned()),
            ..config
        })
    }

    /// [`load`](Self::load) with the file's text; `path` is for messages only.
    ///
    /// # Errors
    /// As [`load`](Self::load), but for an unreadable file.
    pub fn from_text(flags: &Flags, path: &Path, text: &str) -> Result<Self, Failure> {
        Self::merge(flags, parse_file(path, text)?)
    }

    fn merge(flags: &Flags, file: ConfigFile) -> Result<Self, Failure> {
        let listen = if flags.listen.is_empty() {
            file.listen
        } else {
            flags.listen.clone()
        };
        if listen.is_empty() {
            return Err(Failure::new(
                "nothing to listen on",
                "give --listen xen: (or local:PATH, unix:PATH, tcp:HOST:PORT, file:DIR), or set `listen` in \
                 /etc/vgpu/mediatord.toml or the file after --config",
            ));
        }
        for (index, endpoint) in listen.iter().enumerate() {
            if listen[..index].contains(endpoint) {
                return Err(Failure::new(
                    format!("{endpoint} is listed twice"),
                    "name every endpoint once",
                ));
            }
        }
        let secrets = flags.secrets.clone().or(file.secrets);
        let secrets = secrets.map(|path| absolute(&path, "the file with the secrets"));
        let secrets = secrets.transpose()?;
        if let Some(endpoint) = listen.iter().find(|endpoint| is_tcp(endpoint))
            && secrets.is_none()
        {
            return Err(Failure::new(
                format!("{endpoint} needs a file with the secrets of its clients"),
                "make one: (umask 077; vgpuctl secret NAME >> /etc/vgpu/secrets); then give \
                 --secrets /etc/vgpu/secrets, or set `secrets` in the file after --config",
            ));
        }
        let control = match flags.control.clone().or(file.control) {
            Some(path) => absolute(&path, "the control socket")?,
            None => absolute(&default_control_path(), "the control socket")?,
        };
        let executor = flags.executor.clone().or(file.executor).unwrap_or_default();
        let relay_secret = flags.relay_secret.clone().or(file.relay_secret);
        let relay_secret =
            relay_secret.map(|path| absolute(&path, "the file with the relay's secret"));
        let relay_secret = relay_secret.transpose()?;
        check_relay(&executor, relay_secret.as_deref(), &listen)?;
        let config = Self {
            file: None,
            listen,
            executor,
            secrets,
            relay_secret,
            control,
            metrics: file.metrics,
            policy: Policy {
                allow_all: flags.allow_all || file.allow_all,
                guests: file.guests,
            },
            limits: file.limits,
            worker: file.worker,
        };
        if let ExecutorChoice::Relay(endpoint) = &config.executor
            && let Some((setting, _)) = config.device_lists().next()
        {
            return Err(Failure::new(
                format!("{setting} counts for nothing with executor relay:{endpoint}"),
                "take it out here, and set devices in the configuration of the mediator that has the devices",
            ));
        }
        if let ExecutorChoice::Relay(endpoint) = &config.executor
            && config.worker.warm_workers > 0
        {
            return Err(Failure::new(
                format!("worker.warm_workers counts for nothing with executor relay:{endpoint}"),
                "take it out here, and set it in the configuration of the mediator that has the devices",
            ));
        }
        Ok(config)
    }

    /// The lists of devices, each with the setting that it stands in, as in `limits.devices`.
    fn device_lists(&self) -> impl Iterator<Item = (String, &Devices)> {
        let all = self.limits.devices.iter();
        let all = all.map(|devices| ("limits.devices".to_owned(), devices));
        let rules = self.policy.guests.iter().filter_map(|(key, rule)| {
            let devices = rule.share.devices.as_ref()?;
            Some((format!("devices of {key}"), devices))
        });
        all.chain(rules)
    }

    /// Names in lists of devices that are those of none in `table`, each with the setting that it stands in: sessions
    /// of guests with such a list are refused.
    pub fn missing_devices(&self, table: &[Device]) -> Vec<(String, DeviceKey)> {
        let missing = |(setting, devices): (String, &Devices)| {
            let key = devices.find_in(table).err()?;
            Some((setting, key))
        };
        self.device_lists().filter_map(missing).collect()
    }

    /// [`missing_devices`](Self::missing_devices), each as a line for people.
    pub fn missing_devices_in_words(&self, table: &[Device]) -> Vec<String> {
        let missing = self.missing_devices(table).into_iter();
        missing
            .map(|(setting, key)| format!("{setting}: there is no device {key}"))
            .collect()
    }

    /// Every device that some guest may use, or none where that is all of them.
    pub fn devices_of_anybody(&self) -> Option<Vec<DeviceKey>> {
        self.limits.devices?;
        let lists = self.device_lists();
        Some(lists.flat_map(|(_, list)| list.keys().to_vec()).collect())
    }

    /// Looks into the files with secrets, where there is need of them. Workers read them again for
    /// every client and every relayed session.
    ///
    /// # Errors
    /// One cannot be read, others can read it, or a line is wrong.
    pub fn check_secrets(&self) -> Result<(), Failure> {
        if let ExecutorChoice::Relay(endpoint) = &self.executor
            && is_tcp(endpoint)
            && let Some(path) = &self.relay_secret
        {
            Secret::read(path).map_err(|error| Failure::new(error.to_string(), error.advice()))?;
        }
        match &self.secrets {
            Some(path) if self.listen.iter().any(is_tcp) => Secrets::read(path)
                .map(|_| ())
                .map_err(|error| Failure::new(error.to_string(), error.advice())),
            _ => Ok(()),
        }
    }

    /// The effective configuration as a file that could be given to `--config`.
    pub fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct Shown<'a> {
            listen: Vec<String>,
            executor: &'a ExecutorChoice,
            #[serde(skip_serializing_if = "Option::is_none")]
            relay_secret: Option<&'a Path>,
            #[serde(skip_serializing_if = "Option::is_none")]
            secrets: Option<&'a Path>,
            control: &'a Path,
            #[serde(skip_serializing_if = "Option::is_none")]
            metrics: Option<&'a MetricsAddress>,
            allow_all: bool,
            limits: &'a Limits,
            worker: &'a WorkerSettings,
            guests:
                &'a std::collections::BTreeMap<crate::policy::GuestKey, crate::policy::GuestRule>,
        }
        let shown = Shown {
            listen: self.listen.iter().map(Endpoint::to_string).collect(),
            executor: &self.executor,
            relay_secret: self.relay_secret.as_deref(),
            secrets: self.secrets.as_deref(),
            control: &self.control,
            metrics: self.metrics.as_ref(),
            allow_all: self.policy.allow_all,
            limits: &self.limits,
            worker: &self.worker,
            guests: &self.policy.guests,
        };
        toml::to_string(&shown).expect("every path is UTF-8, and TOML can hold the rest")
    }
}

/// The text of a file of at most [`MAX_FILE`] bytes.
fn read_text(file: File) -> io::Result<String> {
    let mut text = String::new();
    let length = file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    match length as u64 > MAX_FILE {
        true => Err(io::Error::other(format!(
            "it is longer than {MAX_FILE} bytes"
        ))),
        false => Ok(text),
    }
}

fn is_tcp(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Tcp { .. })
}

/// Checks the settings of a relay.
fn check_relay(
    executor: &ExecutorChoice,
    secret: Option<&Path>,
    listen: &[Endpoint],
) -> Result<(), Failure> {
    let ExecutorChoice::Relay(endpoint) = executor else {
        return Ok(());
    };
    if is_tcp(endpoint) && secret.is_none() {
        return Err(Failure::new(
            format!("relay:{endpoint} needs a secret"),
            "make one on the other machine (vgpuctl secret NAME), copy it here, and give \
             --relay-secret FILE or set `relay_secret`",
        ));
    }
    match listen.iter().find(|listened| *listened == endpoint) {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            format!("relay:{endpoint} leads back to this mediator"),
            "name another mediator after relay:",
        )),
    }
}

fn parse_file(path: &Path, text: &str) -> Result<ConfigFile, Failure> {
    let file: ConfigFile = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let place = match line {
            Some(line) => format!("{}, line {line}", path.display()),
            None => path.display().to_string(),
        };
        let message = error.message().trim().replace('\n', " ");
        let unquoted = line.and_then(|line| unquoted_name(text, line));
        let advice = match unquoted {
            Some(name) => format!(
                "if {name} is the name of a guest, put it in quotes: \"{name}\" = \"allow\"; {FIX_FILE}"
            ),
            None => FIX_FILE.to_owned(),
        };
        Failure::new(format!("{place}: {message}"), advice)
    })?;
    file.worker
        .check()
        .map_err(|what| Failure::new(format!("{}: {what}", path.display()), FIX_FILE))?;
    Ok(file)
}

/// What stands in line `line`, counted from 1, where the table `[guests]` has names, if it is no bare key of TOML:
/// a VM's name may have blanks, dots and letters of any language.
fn unquoted_name(text: &str, line: usize) -> Option<&str> {
    let before: Vec<&str> = text.lines().take(line).map(str::trim).collect();
    let (last, above) = before.split_last()?;
    let table = above.iter().rev().find(|line| line.starts_with('['))?;
    let (key, _) = last.split_once('=')?;
    let key = key.trim_end();
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let quoted = key.contains(['"', '\'']);
    (*table == "[guests]" && !key.is_empty() && !quoted && !key.chars().all(bare)).then_some(key)
}

#[cfg(test)]
mod tests {
    use vgpu_protocol::op::Op;

    use super::*;
    use crate::policy::Share;

    fn load(text: &str, flags: &[&str]) -> Result<Config, Failure> {
        let flags = Flags::try_parse(flags).expect("these flags are sound");
        Config::merge(&flags, parse_file(Path::new("m.toml"), text)?)
    }

    fn error(text: &str) -> String {
        load(text, &["--listen", "xen:"]).unwrap_err().what
    }

    #[test]
    fn the_example_in_dist_is_valid_and_shows_the_defaults() {
        let text = include_str!("../../../dist/mediator/mediatord.toml");
        let config = load(text, &[]).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.listen, [Endpoint::Xen]);
        assert!(!config.policy.allow_all);
    }

    #[test]
    fn devices_are_listed_for_all_and_for_one_guest() {
        let uuid = "GPU-0a1b2c3d-0000-4000-8000-00000000beef";
        let text = format!(
            "[limits]\ndevices = [1]\n[guests]\nweb = {{ allow = true, devices = ['{uuid}', 0] }}\ndb = 'allow'\n"
        );
        let config = load(&text, &["--listen", "xen:"]).unwrap();
        let names = |share: Share| share.devices.unwrap().to_string();
        let policy = &config.policy;
        let share = |name| policy.share_of_name(name).or(config.limits.share());
        assert_eq!(names(share("web")), format!("{uuid}, 0"));
        assert_eq!(names(share("db")), "1");
        let shown = config.to_toml();
        assert!(shown.contains("devices = [1]"), "{shown}");
        assert_eq!(load(&shown, &[]).unwrap().limits, config.limits);
        let all = config.devices_of_anybody().unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(
            load("", &["--listen", "xen:"])
                .unwrap()
                .devices_of_anybody(),
            None
        );

        let gpu = |index, uuid: &str| Device {
            index,
            uuid: uuid.to_owned(),
            pci: String::new(),
            name: String::new(),
            total_memory: 1,
        };
        let missing = config.missing_devices(&[gpu(0, uuid)]);
        assert_eq!(
            missing,
            [("limits.devices".to_owned(), DeviceKey::Index(1))]
        );
        let both = [
            gpu(0, "GPU-0a1b2c3d-0000-4000-8000-000000000001"),
            gpu(1, uuid),
        ];
        assert_eq!(config.missing_devices(&both), []);

        for (text, words) in [
            (
                "[limits]\ndevices = []\n",
                "limits.devices is empty; name at least one",
            ),
            (
                "[limits]\ndevices = ['all']\n",
                "m.toml, line 2: `all` is no device",
            ),
            (
                "[guests]\nweb = { allow = true, devices = [-1] }\n",
                "m.toml, line 2: `-1` is no",
            ),
            (
                "[guests]\nweb = { allow = true, devices = 0 }\n",
                "line 2: invalid type",
            ),
        ] {
            let what = error(text);
            assert!(what.contains(words), "{what}");
        }
        let relay = ["--listen", "xen:", "--executor", "relay:unix:/far"];
        let failure = load(&text, &relay).unwrap_err();
        assert!(
            failure
                .what
                .starts_with("limits.devices counts for nothing"),
            "{}",
            failure.what
        );
        assert!(failure.advice.contains("the mediator that has the devices"));
    }

    #[test]
    fn the_installed_file_counts_where_flags_say_neither_file_nor_endpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        let (installed, other) = (folder.path().join("m.toml"), folder.path().join("o.toml"));
        let listens = |flags: &[&str]| {
            let flags = Flags::try_parse(flags).expect("these flags are sound");
            Config::load_or(&flags, &installed).map(|config| config.listen)
        };
        assert!(listens(&[]).is_err(), "there is no file yet");
        std::fs::write(&installed, "listen = 'local:/installed'").expect("a file");
        std::fs::write(&other, "listen = 'local:/other'").expect("a file");
        assert_eq!(listens(&[]), Ok(vec![Endpoint::Local("/installed".into())]));
        let flags = ["--config", other.to_str().expect("UTF-8")];
        assert_eq!(listens(&flags), Ok(vec![Endpoint::Local("/other".into())]));
        let flags = ["--listen", "local:/flag"];
        assert_eq!(listens(&flags), Ok(vec![Endpoint::Local("/flag".into())]));
    }

    #[test]
    fn flags_override_the_file() {
        let text = "listen = 'local:/a'\nexecutor = 'cuda'\ncontrol = '/c'\n";
        let config = load(text, &[]).unwrap();
        assert_eq!(config.listen, [Endpoint::Local("/a".into())]);
        assert_eq!(config.executor, ExecutorChoice::Cuda);
        assert_eq!(config.control, Path::new("/c"));
        let flags = [
            "--listen",
            "xen:,file:/d",
            "--executor",
            "cpu",
            "--control",
            "/e",
        ];
        let config = load(text, &flags).unwrap();
        assert_eq!(config.listen, [Endpoint::Xen, Endpoint::File("/d".into())]);
        assert_eq!(config.executor, ExecutorChoice::Cpu);
        assert_eq!(config.control, Path::new("/e"));
        assert!(!config.policy.allow_all);
        assert!(load(text, &["--allow-all"]).unwrap().policy.allow_all);
    }

    #[test]
    fn guests_are_allowed_in_every_notation() {
        let text = "listen = ['xen:', 'local:/a']\n[guests]\n7 = true\nweb = 'allow'\n\
                    'uuid:0a1b2c3d-0000-4000-8000-00000000beef' = 'deny'\n\
                    db = { allow = true, max_sessions = 2 }\n";
        let config = load(text, &[]).unwrap();
        let shown: Vec<_> = config
            .policy
            .guests
            .iter()
            .map(|(key, rule)| (key.to_string(), rule.allow, rule.max_sessions))
            .collect();
        let uuid = "uuid:0a1b2c3d-0000-4000-8000-00000000beef".to_owned();
        assert_eq!(
            shown,
            [
                ("domid:7".into(), true, None),
                ("name:db".into(), true, Some(2)),
                ("name:web".into(), true, None),
                (uuid, false, None),
            ]
        );
        // The output of --check-config is a configuration with the same meaning.
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
    }

    #[test]
    fn shares_of_a_device_are_said_for_all_and_for_one() {
        let text = "listen = 'xen:'\n[limits]\nmemory_mib = 64\nkernel_timeout_s = 7\n[guests]\n\
                    render = { allow = true, memory_mib = 8192, max_objects = 10, idle_timeout_s = 5, \
                    operations = ['memory', 'module-load', 'module-unload'] }\n";
        let config = load(text, &[]).unwrap();
        let general = config.limits.share();
        assert_eq!(general.memory_mib, Some(64));
        assert_eq!(general.kernel_timeout_s, Some(7));
        let render = config.policy.share_of_name("render").or(general);
        assert_eq!(render.memory_mib, Some(8192));
        assert_eq!(render.kernel_timeout_s, Some(7));
        assert_eq!(render.max_objects, Some(10));
        assert_eq!(
            (render.idle_timeout_s, general.idle_timeout_s),
            (Some(5), Some(3600))
        );
        let allowed = render.operations.unwrap().0;
        assert!(allowed.contains(Op::ModuleLoad) && !allowed.contains(Op::ModuleGlobal));
        assert_eq!(general.operations, None);
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            (
                "\nlisten = 'xen:'\nlisen = 'xen:'\n",
                "m.toml, line 3",
                "lisen",
            ),
            ("listen = 'zen:'\n", "m.toml, line 1", "zen"),
            ("listen = ['xen:', '']\n", "m.toml, line 1", "empty"),
            ("listen = 3\n", "m.toml, line 1", "endpoint"),
            ("executor = 'vulkan'\n", "m.toml, line 1", "vulkan"),
            ("executor = 'relay:xen:'\n", "m.toml, line 1", "relay"),
            ("allow_all = 'yes'\n", "m.toml, line 1", "boolean"),
            (
                "[limits]\nmax_session = 3\n",
                "m.toml, line 2",
                "max_session",
            ),
            ("[limits]\nmax_sessions = -1\n", "m.toml, line 2", "-1"),
            (
                "[limits]\nmax_sessions = 0\n",
                "m.toml, line 1",
                "max_sessions is 0",
            ),
            (
                "[limits]\nmax_sessions = 99999999\n",
                "m.toml",
                "at most 512",
            ),
            (
                "[limits]\nkernel_timeout_s = 0\n",
                "m.toml",
                "limits.kernel_timeout_s is 0",
            ),
            (
                "[limits]\noperations = ['module', 'lunch']\n",
                "m.toml, line 2",
                "`lunch` is no operation; there are those of",
            ),
            (
                "[guests]\nweb = { allow = true, operations = 'memory' }\n",
                "m.toml, line 2",
                "sequence",
            ),
            (
                "[guests]\nweb = { allow = true, stall_timeout_s = 0 }\n",
                "m.toml, line 2",
                "stall_timeout_s is 0",
            ),
            (
                "[limits]\nrequest_timeout_s = 0\n",
                "m.toml",
                "request_timeout_s is 0",
            ),
            (
                "[guests]\nweb = { allow = true, weight = 0 }\n",
                "m.toml, line 2",
                "weight is 0",
            ),
            (
                "[guests]\nweb = { allow = true, memory_mib = 0 }\n",
                "m.toml, line 2",
                "memory_mib is 0",
            ),
            ("[guests]\n40000 = true\n", "m.toml, line 2", "40000"),
            ("[guests]\nweb = 'maybe'\n", "m.toml, line 2", "maybe"),
            (
                "[guests]\nweb = { alow = true }\n",
                "m.toml, line 2",
                "alow",
            ),
            (
                "[guests]\nweb = { max_sessions = 1 }\n",
                "m.toml, line 2",
                "allow",
            ),
            (
                "[guests]\n7 = true\n'domid:7' = false\n",
                "m.toml, line 3",
                "twice",
            ),
            ("listen = 'xen:\n", "m.toml, line 1", "string"),
        ];
        for (text, place, word) in cases {
            let error = error(text);
            assert!(error.starts_with(place), "{error}");
            assert!(error.contains(word), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_name_that_toml_takes_in_quotes_alone_is_said_to_need_them() {
        let advice = |text: &str| {
            let failure = load(text, &["--listen", "xen:"]).unwrap_err();
            assert!(failure.what.contains("line "), "{}", failure.what);
            failure.advice
        };
        let guests = "[limits]\nweight = 2\n[guests]\nweb-1 = 'allow'\n";
        for name in ["web server 1", "web.example.org", "bürger", "a b.c"] {
            let advice = advice(&format!("{guests}{name} = 'allow'\n"));
            let quoted = format!("put it in quotes: \"{name}\" = \"allow\"; ");
            assert!(advice.contains(&quoted), "{advice}");
            let text = format!("{guests}\"{name}\" = 'allow'\n");
            let config = load(&text, &["--listen", "xen:"]).unwrap();
            assert!(config.policy.judge_name(name).allow);
        }
        for text in [
            "[guests]\nweb-1 = 'maybe'\n",
            "[guests]\n\"web 1\" = 'maybe'\n",
            "[limits]\nmax sessions = 1\n",
            "max sessions = 1\n",
        ] {
            assert_eq!(advice(text), FIX_FILE, "{text}");
        }
    }

    #[test]
    fn tcp_needs_secrets() {
        let error = load("listen = 'tcp:127.0.0.1:7070'\n", &[]).unwrap_err();
        assert!(error.what.contains("secrets"), "{}", error.what);
        assert!(error.advice.contains("vgpuctl secret"), "{}", error.advice);
        let text = "listen = 'tcp:127.0.0.1:7070'\nsecrets = '/s'\n";
        let config = load(text, &[]).unwrap();
        assert_eq!(config.secrets, Some("/s".into()));
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
        assert!(config.check_secrets().is_err(), "there is no such file");
        let config = load(text, &["--secrets", "/t"]).unwrap();
        assert_eq!(config.secrets, Some("/t".into()));
    }

    #[test]
    fn a_path_that_is_not_utf_8_is_refused_at_once() {
        use std::os::unix::ffi::OsStrExt;
        let path = || Some(PathBuf::from(std::ffi::OsStr::from_bytes(b"/a/\xff")));
        let sound = Flags::try_parse(&["--listen", "tcp:127.0.0.1:7070", "--secrets", "/s"]);
        let sound = sound.unwrap();
        for (flags, word) in [
            (
                Flags {
                    secrets: path(),
                    ..sound.clone()
                },
                "the secrets",
            ),
            (
                Flags {
                    relay_secret: path(),
                    ..sound.clone()
                },
                "the relay's",
            ),
            (
                Flags {
                    control: path(),
                    ..sound.clone()
                },
                "control socket",
            ),
        ] {
            let error = Config::load(&flags).unwrap_err();
            assert!(error.what.contains(word), "{error:?}");
            assert!(error.what.contains("not UTF-8"), "{error:?}");
        }
        assert!(Config::load(&sound).is_ok());
    }

    #[test]
    fn a_relay_over_tcp_needs_a_secret_and_none_leads_back() {
        let text = "listen = ['xen:', 'local:/a']\nexecutor = 'relay:tcp:gpu:7070'\n";
        let error = load(text, &[]).unwrap_err();
        assert!(error.what.contains("needs a secret"), "{error:?}");
        assert!(error.advice.contains("--relay-secret"), "{error:?}");
        let config = load(text, &["--relay-secret", "/s"]).unwrap();
        assert_eq!(config.relay_secret.as_deref(), Some(Path::new("/s")));
        assert!(config.check_secrets().is_err(), "there is no such file");
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
        let error = load(text, &["--executor", "relay:local:/a"]).unwrap_err();
        assert!(error.what.contains("leads back"), "{error:?}");
    }

    #[test]
    fn an_endpoint_is_needed_and_named_once() {
        assert_eq!(load("", &[]).unwrap_err().what, "nothing to listen on");
        let error = load("", &["--listen", "xen:,xen:"]).unwrap_err().what;
        assert_eq!(error, "xen: is listed twice");
    }
}
