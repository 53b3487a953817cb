//! A kit of lies, told to a mediator that serves others meanwhile.
//!
//! Each lie is told by a session of its own over every endpoint at once, and has a typed error or the end of that session
//! for its answer. After each the mediator is as it was before: its workers, descriptors and memory, what its status
//! counts, and the sessions of another guest, which compute and find their memory untouched.
//!
//! With `VGPU_LIE=flood` in the environment only the lies with that in their name are told.

mod bystander;
mod edges;
mod guest;
mod lies;
#[path = "../executor/stand_in/library.rs"]
mod stand_in;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use bystander::Bystander;
use guest::Guest;
use support::sockets::Sockets;
use support::{Mediator, WATCHDOG, descriptors};
use vgpu_guest::Endpoint;

/// Kernels that write where they are told, spin and trap.
const KERNELS: &str = include_str!("../../../guest/src/conformance/kernels.ptx");

/// Kernels that print.
const PRINTED: &str = include_str!("../../../guest/src/conformance/printed.ptx");

/// A liar has less memory and objects than there could be. Others have all the time that a busy machine needs.
const RULES: &str = "max_sessions_per_guest = 40
max_objects = 50
memory_mib = 64
pinned_mib = 4
kernel_timeout_s = 1
[guests]
other = { allow = true, stall_timeout_s = 60, kernel_timeout_s = 60 }
";

/// How long a liar may be silent: one that waits for the end of that, and one that has to be heard on a busy machine.
const SHORT: &str = "hello_timeout_s = 2\nstall_timeout_s = 1\n";
const LONG: &str = "hello_timeout_s = 60\nstall_timeout_s = 60\n";

/// Memory by which a process may grow for good: what allocators keep, and tables that have been longer once.
const GROWTH_KIB: u64 = 4 << 10;

/// The endpoints over which a lie is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// All three. Of sessions over TCP a client may open few in a second.
    All,
    /// `local:` and `unix:`.
    Both,
    /// The same; where sessions take long to open, one of the two in turn: most of this is the same for every device.
    Rules,
    /// The same, but there always the first.
    Local,
}

/// One thing that a guest does wrong, by a session over each endpoint.
struct Lie {
    name: String,
    over: Over,
    tell: Box<dyn Fn(&Place<'_>) + Sync>,
}

impl Lie {
    /// It is over when the mediator has waited long enough.
    fn is_silent(&self) -> bool {
        self.name == lies::SILENCE
    }
}

/// Where a lie is told.
struct Place<'a> {
    mediator: &'a Mediator,
    sockets: &'a Sockets,
    endpoint: Endpoint,
    /// Memory of a session of somebody else.
    elsewhere: u64,
}

/// Most memory of the worker of a session here: its quota, its graphs, and a worker's own.
const MOST_KIB: u64 = (64 + 64 + 48) << 10;

impl Place<'_> {
    /// What a guest asks for does not pile up in its worker.
    fn is_bounded(&self, guest: &Guest) {
        let memory = memory_of(self.worker(guest));
        assert!(memory <= MOST_KIB, "the worker has {memory} KiB");
    }

    fn connect(&self) -> Guest {
        Guest::connect(&self.endpoint, &self.sockets.options())
    }

    fn open(&self) -> Guest {
        Guest::open(&self.endpoint, &self.sockets.options())
    }

    /// The worker process that has this session.
    fn worker(&self, guest: &Guest) -> u32 {
        let status = self.mediator.status();
        let sessions = status["sessions"].as_array().expect("a list");
        let named = sessions
            .iter()
            .find(|it| it["client"] == guest.name.as_str());
        let pid = named.and_then(|it| it["pid"].as_u64()).expect("a session");
        u32::try_from(pid).expect("a pid")
    }
}

/// Everything that is to be the same after a lie.
#[derive(Debug, PartialEq)]
struct State {
    processes: usize,
    /// Of the broker, and of the workers of those who do not lie: kinds, with how many of each are open.
    descriptors: Vec<String>,
    /// Guest, state, memory in use and requests under way of each session.
    sessions: Vec<String>,
    /// Guest, sessions, memory in use and requests under way of each account that has any.
    accounts: Vec<String>,
}

impl State {
    fn of(mediator: &Mediator) -> Self {
        let status = mediator.status();
        let list = |of: &str| status[of].as_array().expect("a list").clone();
        let row = |it: &serde_json::Value, fields: &[&str]| -> String {
            fields
                .iter()
                .map(|field| format!("{} ", it[*field]))
                .collect()
        };
        let figures = ["guest", "sessions", "memory", "queue"];
        let idle = |it: &&serde_json::Value| figures[1..].iter().all(|figure| it[*figure] == 0);
        let kind = |name: String| name.split(':').next().unwrap_or_default().to_owned();
        let mut sessions = list("sessions");
        sessions.sort_by_key(|it| it["session"].as_u64());
        let workers = sessions.iter().filter_map(|it| it["pid"].as_u64());
        let processes = workers.map(|pid| u32::try_from(pid).expect("a pid"));
        let mut open: Vec<String> = processes
            .chain([mediator.pid()])
            .flat_map(|pid| descriptors(pid).into_iter().map(kind))
            .collect();
        open.sort();
        let rows = |list: &[serde_json::Value], fields: &[&str]| -> Vec<String> {
            list.iter().map(|it| row(it, fields)).collect()
        };
        let accounts = list("guests");
        let accounts: Vec<_> = accounts.iter().filter(|it| !idle(it)).cloned().collect();
        Self {
            processes: mediator.workers().len(),
            descriptors: open,
            sessions: rows(&sessions, &["guest", "client", "state", "memory", "queue"]),
            accounts: rows(&accounts, &figures),
        }
    }
}

/// Memory that a process has for itself, in KiB.
fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.expect("a line of it").trim().trim_end_matches(" kB");
    kib.parse().expect("a number")
}

/// Tells the lies that are `silent`, or the others, and looks at the mediator after each.
fn tell(mediator: &Mediator, sockets: &Sockets, slow_to_open: bool, silent: bool) {
    let mut bystander = Bystander::new(sockets);
    // Whatever is there after the first session of a kind is there before the first lie.
    for endpoint in sockets.endpoints(mediator) {
        Guest::open(&endpoint, &sockets.options()).serves();
    }
    bystander.check();
    let settled = |wanted: Option<&State>, name: &str| {
        let deadline = Instant::now() + WATCHDOG;
        let mut last = None;
        loop {
            let now = State::of(mediator);
            match wanted {
                Some(wanted) if now == *wanted => return now,
                // Twice the same, with nobody there but the bystander.
                None if now.accounts.len() == 1 && last.as_ref() == Some(&now) => return now,
                _ => {}
            }
            last = Some(now);
            assert!(
                Instant::now() < deadline,
                "{name}: the mediator is not as it was\nnow {last:#?}\nbefore {wanted:#?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    };
    let before = settled(None, "at first");
    let memory = |pid: u32| memory_of(pid) + GROWTH_KIB;
    let most: Vec<(u32, u64)> = bystander
        .workers(mediator)
        .into_iter()
        .chain([mediator.pid()])
        .map(|pid| (pid, memory(pid)))
        .collect();

    let only = std::env::var("VGPU_LIE").unwrap_or_default();
    let lies = lies::lies().into_iter().chain(table::lies());
    let lies = lies.filter(|lie| lie.name.contains(&only) && lie.is_silent() == silent);
    for (number, lie) in lies.enumerate() {
        let lie = &lie;
        let began = Instant::now();
        let mut endpoints = sockets.endpoints(mediator);
        match lie.over {
            Over::All => {}
            Over::Rules if slow_to_open => endpoints = vec![endpoints.swap_remove(number % 2)],
            Over::Local if slow_to_open => endpoints.truncate(1),
            Over::Both | Over::Rules | Over::Local => endpoints.truncate(2),
        }
        let places = endpoints.into_iter().map(|endpoint| Place {
            mediator,
            sockets,
            endpoint,
            elsewhere: bystander.address(),
        });
        thread::scope(|scope| {
            for place in places {
                scope.spawn(move || {
                    let told = catch_unwind(AssertUnwindSafe(|| (lie.tell)(&place)));
                    assert!(told.is_ok(), "{} over {}", lie.name, place.endpoint);
                });
            }
        });
        let told = began.elapsed();
        settled(Some(&before), &lie.name);
        bystander.check();
        for (pid, most) in &most {
            let now = memory_of(*pid);
            assert!(
                now <= *most,
                "{}: process {pid} has {now} of {most} KiB",
                lie.name
            );
        }
        println!(
            "{:7.1} ms, then {:5.1} ms: {}",
            ms(told),
            ms(began.elapsed() - told),
            lie.name
        );
    }
    bystander.end();
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Tells every lie to mediators with every endpoint, on this executor.
fn told_to(executor: &str, environment: &[(&str, &std::ffi::OsStr)]) {
    for silent in [false, true] {
        told_to_one(executor, environment, silent);
    }
}

fn told_to_one(executor: &str, environment: &[(&str, &std::ffi::OsStr)], silent: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let sockets = Sockets::new(directory.path());
    let file = directory.path().join("mediatord.toml");
    let patience = if silent { SHORT } else { LONG };
    fs::write(&file, format!("[limits]\n{patience}{RULES}")).expect("our own directory");
    let file = file.to_str().expect("text");
    let mediator = sockets.start_with(&["--config", file, "--executor", executor], |command| {
        command.envs(environment.iter().copied());
    });
    tell(&mediator, &sockets, executor == "cuda", silent);
    mediator.stop();
}

#[test]
fn every_lie_costs_its_own_session_alone_on_the_processor() {
    told_to("cpu", &[]);
}

#[test]
fn every_lie_costs_its_own_session_alone_on_the_stand_in() {
    let library = stand_in::library().as_os_str();
    told_to(
        "cuda",
        &[
            ("LD_LIBRARY_PATH", library),
            (stand_in::SCENARIO, "works".as_ref()),
        ],
    );
}
