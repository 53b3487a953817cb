//! Checks of a Xen guest for `xen:`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use vchan::xen::store::Store;
use vgpu_cli::diagnosis::Check;
use vgpu_guest::{MEDIATOR_HINT, MediatorHint};

/// Pages of a session with default rings: 256 KiB each way and the control page.
const SESSION_PAGES: u64 = 129;

/// All checks, each made when its turn comes: a later one may take a while. xenstore gets `timeout`
/// for each that asks it.
pub(super) fn checks(timeout: Duration) -> impl Iterator<Item = Check> {
    let all: [fn(Duration) -> Check; 8] = [
        |_| hypervisor(),
        |_| module("xen_gntalloc", "xen-gntalloc", "CONFIG_XEN_GRANT_DEV_ALLOC"),
        |_| device("/dev/xen/gntalloc", "xen-gntalloc"),
        |_| grant_limit(),
        |_| module("xen_evtchn", "xen-evtchn", "CONFIG_XEN_DEV_EVTCHN"),
        |_| device("/dev/xen/evtchn", "xen-evtchn"),
        own_domain,
        hint,
    ];
    all.into_iter().map(move |check| check(timeout))
}

fn hypervisor() -> Check {
    const NAME: &str = "Xen guest";
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    match read("/sys/hypervisor/type").as_deref() {
        Ok("xen") => {
            let kind = read("/sys/hypervisor/guest_type").unwrap_or_else(|_| "Xen".to_owned());
            let dom0 = read("/proc/xen/capabilities").is_ok_and(|text| text.contains("control_d"));
            if dom0 {
                return Check::bad(
                    NAME,
                    "this is dom0, where the mediator itself runs",
                    "run this in a guest, or use local:PATH here",
                );
            }
            Check::good(NAME, format!("yes, {kind}"))
        }
        Ok(other) => Check::bad(NAME, format!("no, under {other}"), NOT_XEN),
        Err(_) => Check::bad(NAME, "no, there is no /sys/hypervisor/type", NOT_XEN),
    }
}

const NOT_XEN: &str =
    "run this in a guest of Xen, or use local:PATH with a mediator on this machine";

/// A driver of the kernel. One that is built in shows up only through its device.
fn module(name: &'static str, modprobe: &str, option: &str) -> Check {
    if Path::new("/sys/module").join(name).exists() {
        return Check::good(name, "in the kernel");
    }
    let device = format!("/dev/xen/{}", name.trim_start_matches("xen_"));
    if Path::new(&device).exists() {
        return Check::good(name, "built into the kernel");
    }
    if is_left_out(&kernel_configuration(), option) {
        return Check::bad(
            name,
            format!("not in this kernel, which is built without {option}"),
            "use tcp:HOST:PORT or file:DIR in place of xen:, or a kernel that has it, as Debian's",
        );
    }
    Check::bad(
        name,
        "not loaded",
        format!(
            "modprobe {modprobe} (as root); if there is no such module, use a kernel with {option}, or tcp: or \
             file: in place of xen:"
        ),
    )
}

/// The configuration that the running kernel was built with, where distributions put it; empty if it is not there.
fn kernel_configuration() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let path = format!("/boot/config-{}", release.trim());
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether `configuration` says that `option` is off. Of one that says nothing nobody knows.
fn is_left_out(configuration: &str, option: &str) -> bool {
    let off = format!("# {option} is not set");
    configuration.lines().any(|line| line == off)
}

fn device(path: &'static str, modprobe: &str) -> Check {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good(path, "can be opened"),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Check::bad(
                path,
                "is not there",
                format!("modprobe {modprobe} (as root), mount /dev"),
            ),
            io::ErrorKind::PermissionDenied => Check::bad(
                path,
                "may not be opened by this user",
                format!("run as root, or give this user access (chgrp and chmod g+rw {path})"),
            ),
            _ => Check::bad(path, format!("cannot be opened: {error}"), "look at dmesg"),
        },
    }
}

fn grant_limit() -> Check {
    const NAME: &str = "grant pages";
    const PATH: &str = "/sys/module/xen_gntalloc/parameters/limit";
    let limit = fs::read_to_string(PATH)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match limit {
        None => Check::bad(
            NAME,
            format!("{PATH} cannot be read"),
            "load xen-gntalloc first (see above)",
        ),
        Some(limit) if limit < SESSION_PAGES => Check::bad(
            NAME,
            format!("at most {limit}, and a session with default rings takes {SESSION_PAGES}"),
            format!("echo 1024 > {PATH} (as root), or use --ring with less"),
        ),
        Some(limit) => Check::good(
            NAME,
            format!(
                "at most {limit} for the whole guest, {} sessions",
                limit / SESSION_PAGES
            ),
        ),
    }
}

fn own_domain(timeout: Duration) -> Check {
    const NAME: &str = "xenstore";
    let deadline = Instant::now() + timeout;
    match Store::open(deadline).and_then(|store| store.read("domid", deadline)) {
        Ok(domain) => Check::good(NAME, format!("reachable, this is domain {}", domain.trim())),
        Err(error) => Check::bad(NAME, error.to_string(), error.advice()),
    }
}

fn hint(timeout: Duration) -> Check {
    const NAME: &str = "policy in dom0";
    match MediatorHint::read(Instant::now() + timeout) {
        Ok(MediatorHint::Allowed) => Check::good(NAME, "this guest is allowed"),
        Ok(MediatorHint::Denied) => Check::bad(
            NAME,
            "this guest is denied by policy",
            "ask the admin of dom0 to allow it in the mediator's [guests] table",
        ),
        Ok(MediatorHint::Absent) => Check::bad(
            NAME,
            format!("none: nothing at {MEDIATOR_HINT}"),
            "start the mediator in dom0: vgpu-mediatord --listen xen:",
        ),
        Ok(MediatorHint::Unknown) => Check::bad(
            NAME,
            format!("{MEDIATOR_HINT} holds something unknown"),
            "use the same release of vgpu on both sides",
        ),
        Err(error) => Check::bad(NAME, error.to_string(), error.advice()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_left_out;

    #[test]
    fn a_kernel_without_a_driver_is_told_from_one_that_has_it() {
        let option = "CONFIG_XEN_GRANT_DEV_ALLOC";
        let without = "CONFIG_XEN=y\n# CONFIG_XEN_GRANT_DEV_ALLOC is not set\n";
        assert!(is_left_out(without, option));
        assert!(!is_left_out("CONFIG_XEN_GRANT_DEV_ALLOC=m\n", option));
        assert!(!is_left_out(
            "# CONFIG_XEN_GRANT_DEV_ALLOC_MORE is not set\n",
            option
        ));
        assert!(!is_left_out("", option));
    }
}
