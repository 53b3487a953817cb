//! The confinement of a live worker, as the kernel shows it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use nix::errno::Errno;

/// The lines of a process or thread that tell of its rights, as `Uid:` and what follows.
pub(crate) fn rights(status: &Path) -> impl Fn(&str) -> String + use<> {
    in_status(fs::read_to_string(status).expect("a live thread"))
}

fn in_status(text: String) -> impl Fn(&str) -> String {
    move |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_else(|| panic!("{name} in {text}"));
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Asserts that every thread of a worker is confined, whoever started the mediator.
pub(crate) fn assert_is_confined(pid: u32, capabilities: u64) {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a live worker");
    let mut seen = 0;
    for thread in threads {
        let thread = thread.expect("an entry").path().join("status");
        let says = match fs::read_to_string(&thread) {
            Ok(text) => in_status(text),
            // It has ended since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => continue,
            Err(error) => panic!("{}: {error}", thread.display()),
        };
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(says(set), "0000000000000000", "{set}");
        }
        for set in ["CapPrm:", "CapEff:"] {
            assert_eq!(says(set), format!("{capabilities:016x}"), "{set}");
        }
        assert_eq!(says("NoNewPrivs:"), "1");
        assert_eq!(says("Seccomp:"), "2");
        seen += 1;
    }
    // The session's and the one that listens to the broker at least: the filter is over all of them.
    assert!(seen >= 2, "{seen} threads");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let core = core.expect("a line of core files");
    assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
}

/// Asserts the rest of the confinement, which only a mediator run by root can set up.
pub(crate) fn assert_has_nothing(pid: u32, user: u32) {
    assert_is_confined(pid, 0);
    let says = rights(Path::new(&format!("/proc/{pid}/status")));
    let four = |id: u32| format!("{id} {id} {id} {id}");
    assert_eq!(says("Uid:"), four(user));
    assert_eq!(says("Gid:"), four(user));
    assert_eq!(says("Groups:"), "");
    assert_eq!(says("CapBnd:"), "0000000000000000");
    for namespace in ["net", "mnt", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let interfaces = fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("its network");
    assert_eq!(interfaces.lines().count(), 3, "only lo: {interfaces}");
    for hidden in ["etc", "home", "root", "run", "dev/xen", "proc/1", "usr"] {
        let path = format!("/proc/{pid}/root/{hidden}");
        assert!(!Path::new(&path).exists(), "it sees /{hidden}");
    }
}
