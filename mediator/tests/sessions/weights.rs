//! The device's time is shared by weight, as the kernels' own time tells.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vgpu_guest::{Client, Device, Endpoint, Function, Options};
use vgpu_socket_transport::Secret;

use crate::support::sockets::{Sockets, write_private};
use crate::support::{Mediator, ONE, WATCHDOG, options, run, signal, wait_until};

/// Counts down from `times`, in one thread: the time is in proportion.
const PTX: &[u8] = b".version 6.0\n.target sm_50\n.address_size 64\n\
    .visible .entry work(.param .u32 times)\n{\n.reg .pred %p;\n.reg .b32 %n;\n\
    ld.param.u32 %n, [times];\nmore:\nsub.u32 %n, %n, 1;\nsetp.ne.u32 %p, %n, 0;\n\
    @%p bra more;\nret;\n}\n";

/// Threads of a guest that launch.
const LANES: usize = 3;

/// The device's time that guests have had together when it is looked at.
const ENOUGH: Duration = Duration::from_secs(3);

/// Clients over TCP with names, weights and an endless supply of kernels.
struct Guests {
    mediator: Mediator,
    tcp: Endpoint,
    directory: tempfile::TempDir,
    /// Shares of one processor are not measured beside those of another test.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Guests {
    fn new(weights: &[(&str, u32)]) -> Self {
        let rule = |(name, weight): &(&str, u32)| (name.to_string(), format!("weight = {weight}"));
        Self::with_rules(&weights.iter().map(rule).collect::<Vec<_>>())
    }

    /// With a rule for each beside its name.
    fn with_rules(names: &[(String, String)]) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (mut secrets, mut rules) = (String::new(), String::from("[guests]\n"));
        let tcp = Sockets::new(directory.path()).tcp();
        for (name, rule) in names {
            let line = Secret::generate(name).unwrap().to_line();
            write_private(&at(name), &line);
            secrets.push_str(&line);
            secrets.push('\n');
            rules.push_str(&format!("{name} = {{ allow = true, {rule} }}\n"));
        }
        write_private(&at("secrets"), &secrets);
        std::fs::write(at("rules.toml"), rules).unwrap();
        let (listen, text) = (tcp.to_string(), |path: &Path| path.display().to_string());
        let (secrets, rules) = (text(&at("secrets")), text(&at("rules.toml")));
        let flags = [
            "--listen",
            &listen,
            "--secrets",
            &secrets,
            "--config",
            &rules,
        ];
        let mediator = Mediator::start(directory.path(), &flags);
        Self {
            mediator,
            tcp,
            directory,
            _alone: alone,
        }
    }

    fn device(&self, name: &str) -> Device {
        let options = Options {
            secret_file: Some(self.directory.path().join(name)),
            ..options()
        };
        let client = Client::connect(std::slice::from_ref(&self.tcp), &options).unwrap();
        Device::new(client).unwrap()
    }

    /// Launches kernels without end, until the mediator is gone: by several threads, so that there is
    /// always one that waits for the device.
    fn keep_busy(&self, name: &str, times: u32) {
        let device = self.device(name);
        let kernel = Arc::new(work(&device));
        for _ in 0..LANES {
            let (lane, kernel) = (device.lane().unwrap(), Arc::clone(&kernel));
            thread::spawn(move || {
                let launch = || lane.launch_builder(&kernel).arg(&times).launch(ONE);
                // Not all of them at once: what nobody reads for long ends a connection.
                let some = || {
                    (0..16)
                        .try_for_each(|_| launch())
                        .and_then(|()| lane.synchronize())
                };
                while some().is_ok() {}
            });
        }
    }

    /// Time of each so far, in the order of `names`.
    fn had(&self, names: &[&str]) -> Vec<Had> {
        let status = self.mediator.status();
        let guests = status["guests"].as_array().unwrap();
        let of = |name: &&str| {
            let name = format!("tcp {name}");
            let guest = guests.iter().find(|guest| guest["guest"] == name.as_str());
            let figure = |guest: &serde_json::Value| Had {
                contended: guest["contended_ns"].as_u64().unwrap(),
                worked: guest["usage"]["device_ns"].as_u64().unwrap(),
                turns: guest["turns"].as_u64().unwrap(),
            };
            guest.map(figure).unwrap_or_default()
        };
        names.iter().map(of).collect()
    }

    /// Waits until each has had its part of the device's time, over a while in which all of them were at it: to
    /// within 5 % by the mediator's clock, which is what it shares, and to within 20 % by what the kernels themselves
    /// took. On a busy machine that while may have to be long: what a turn takes beside its kernels differs. Shares
    /// that are not those of the weights are so in every while.
    fn wait_for_parts(&self, weights: &[(&str, u32)]) {
        let deadline = Instant::now() + 3 * WATCHDOG;
        let (names, weights): (Vec<&str>, Vec<u32>) = weights.iter().copied().unzip();
        let turns = |had: &[Had]| had.iter().all(|had| had.turns > 1);
        wait_until("all are at it", || turns(&self.had(&names)));
        let (mut start, mut enough) = (self.had(&names), ENOUGH);
        loop {
            let now = self.had(&names);
            let since = |what: fn(&Had) -> u64| -> Vec<u64> {
                let both = now.iter().zip(&start);
                both.map(|(now, start)| what(now) - what(start)).collect()
            };
            let (contended, worked) = (since(|had| had.contended), since(|had| had.worked));
            assert!(Instant::now() < deadline, "{contended:?}, {worked:?}");
            if Duration::from_nanos(worked.iter().sum()) >= enough {
                if off(&contended, &weights) < 0.05 && off(&worked, &weights) < 0.2 {
                    return;
                }
                (start, enough) = (now, 2 * enough);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The mediator's figures of one guest.
#[derive(Debug, Clone, Copy, Default)]
struct Had {
    contended: u64,
    worked: u64,
    turns: u64,
}

/// The largest part by which a share is not that of its weight.
fn off(had: &[u64], weights: &[u32]) -> f64 {
    let all: u64 = had.iter().sum();
    let all_weights: u32 = weights.iter().sum();
    let off = had.iter().zip(weights).map(|(had, weight)| {
        let (part, due) = (
            *had as f64 / all as f64,
            f64::from(*weight) / f64::from(all_weights),
        );
        (part / due - 1.0).abs()
    });
    off.fold(0.0, f64::max)
}

fn work(device: &Device) -> Function {
    let module = device.load_module(PTX).unwrap();
    module.load_function("work").unwrap()
}

/// How often the kernel is to count for a few milliseconds.
fn few_milliseconds(guests: &Guests, name: &str) -> u32 {
    let device = guests.device(name);
    let kernel = work(&device);
    let mut times = 1000u32;
    let run = |times: u32| {
        device
            .launch_builder(&kernel)
            .arg(&times)
            .launch(ONE)
            .unwrap();
        device.synchronize().unwrap()
    };
    // The shortest of a few: other programs may have had the processor meanwhile.
    while (0..5).map(|_| run(times)).min() < Some(Duration::from_millis(4)) {
        times *= 2;
    }
    drop(kernel);
    device.goodbye().unwrap();
    times
}

fn assert_parts(weights: &[(&str, u32)]) {
    let guests = Guests::new(weights);
    let times = few_milliseconds(&guests, weights[0].0);
    for (name, _) in weights {
        guests.keep_busy(name, times);
    }
    guests.wait_for_parts(weights);
    guests.mediator.crash();
}

#[test]
fn two_guests_of_one_weight_have_equal_parts() {
    assert_parts(&[("a", 1), ("b", 1)]);
}

#[test]
fn a_guest_with_three_times_the_weight_has_three_times_the_part() {
    assert_parts(&[("a", 1), ("b", 3)]);
}

#[test]
fn ten_guests_have_equal_parts() {
    let names: Vec<String> = (0..10).map(|number| format!("g{number}")).collect();
    let weights: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    assert_parts(&weights);
}

#[test]
fn who_is_alone_has_one_turn_without_an_end() {
    let guests = Guests::new(&[("a", 1), ("b", 1)]);
    let device = guests.device("a");
    let kernel = work(&device);
    launch(&device, &kernel, 1000, 2000);
    let had = guests.had(&["a", "b"]);
    assert_eq!((had[0].turns, had[0].contended), (1, 0));
    assert_eq!(had[1].turns, 0);
    drop((kernel, device));
    guests.mediator.crash();
}

/// A mediator with guest `a` of this rule and `b`, and how often a kernel is to count there.
fn a_and_b(rule: &str) -> (Guests, u32) {
    let rules = [("a", rule), ("b", "weight = 1")];
    let rules = rules.map(|(name, rule)| (name.to_owned(), rule.to_owned()));
    let guests = Guests::with_rules(&rules);
    let times = few_milliseconds(&guests, "b");
    (guests, times)
}

/// Launches `count` kernels and waits for them.
fn launch(device: &Device, kernel: &Function, times: u32, count: usize) {
    for _ in 0..count {
        let launch = device.launch_builder(kernel).arg(&times).launch(ONE);
        launch.unwrap();
    }
    device.synchronize().unwrap();
}

/// Has the device run a kernel that does not end: it counts down from 0, by way of 2^32 - 1.
fn hang(device: &Device) -> Function {
    let kernel = work(device);
    let launch = device.launch_builder(&kernel).arg(&0u32);
    launch.launch_checked(ONE).unwrap();
    kernel
}

/// Guest `b` does some work and goes.
fn b_works(guests: &Guests, times: u32) {
    let device = guests.device("b");
    let kernel = work(&device);
    launch(&device, &kernel, times, 20);
    drop(kernel);
    device.goodbye().unwrap();
}

#[test]
fn a_kernel_that_does_not_end_holds_nobody_up_and_who_is_left_goes_on() {
    let (guests, times) = a_and_b("weight = 1");
    let hanging = guests.device("a");
    let kernel = hang(&hanging);
    b_works(&guests, times);
    let kicked = run(guests.mediator.vgpuctl().args(["kick", "a"]));
    assert!(kicked.status.success(), "it still ran");
    b_works(&guests, times);
    drop((kernel, hanging));
    guests.mediator.crash();
}

#[test]
fn kernels_that_do_not_end_in_many_sessions_hold_nobody_up_until_their_deadline() {
    let (guests, times) = a_and_b("weight = 100, kernel_timeout_s = 10, max_sessions = 8");
    let hanging: Vec<Device> = (0..8).map(|_| guests.device("a")).collect();
    let kernels: Vec<Function> = hanging.iter().map(hang).collect();
    b_works(&guests, times);
    let killed = || {
        let status = guests.mediator.status();
        let guests = status["guests"].as_array().unwrap().iter();
        let killed = guests.map(|guest| guest["usage"]["kernels_killed"].as_u64().unwrap());
        killed.sum::<u64>()
    };
    wait_until("the kernels are ended", || killed() == 8);
    assert!(hanging.iter().all(|device| device.synchronize().is_err()));
    b_works(&guests, times);
    drop((kernels, hanging));
    guests.mediator.crash();
}

#[test]
fn guests_that_die_in_their_turns_take_nothing_from_the_others() {
    let (guests, times) = a_and_b("weight = 1");
    guests.keep_busy("b", times);
    for _ in 0..5 {
        let before = guests.had(&["a"])[0].turns;
        let device = guests.device("a");
        let kernel = work(&device);
        for _ in 0..10 {
            let launch = device.launch_builder(&kernel).arg(&times);
            launch.launch_checked(ONE).unwrap();
        }
        assert!(guests.had(&["a"])[0].turns > before);
        // Its connection breaks, with a kernel on the device.
        drop((kernel, device));
    }
    let before = guests.had(&["b"])[0].worked;
    wait_until("the other goes on", || {
        guests.had(&["b"])[0].worked > before + 100_000_000
    });
    guests.mediator.crash();
}

#[test]
fn a_worker_that_is_killed_in_its_turn_takes_nothing_from_the_others() {
    let (guests, times) = a_and_b("weight = 1");
    for name in ["a", "b"] {
        guests.keep_busy(name, times);
    }
    let turns = |name| guests.had(&[name])[0].turns;
    wait_until("both are at it", || turns("a") > 3 && turns("b") > 3);
    let status = guests.mediator.status();
    let sessions = status["sessions"].as_array().unwrap();
    let of_a = sessions.iter().find(|session| {
        let guest = session["guest"].as_str().unwrap();
        guest.starts_with("tcp a")
    });
    let worker = of_a.unwrap()["pid"].as_i64().unwrap();
    signal(u32::try_from(worker).unwrap(), Signal::SIGKILL);
    let before = guests.had(&["b"])[0].worked;
    wait_until("the other goes on", || {
        guests.had(&["b"])[0].worked > before + 100_000_000
    });
    // It may come again.
    let before = turns("a");
    guests.keep_busy("a", times);
    wait_until("both are at it again", || turns("a") > before + 3);
    guests.mediator.crash();
}
