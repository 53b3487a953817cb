//! Attacks by a worker taken over by its guest. Each returns whether it succeeded.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use libc::{c_long, c_ulong};

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// Root without confinement gets there, on any machine.
    pub(crate) teeth: bool,
    pub(crate) run: fn() -> bool,
}

const fn attack(name: &'static str, run: fn() -> bool) -> Attack {
    Attack {
        name,
        teeth: true,
        run,
    }
}

/// An attack that may fail even for root: without Xen, or depending on the system.
const fn perhaps(name: &'static str, run: fn() -> bool) -> Attack {
    Attack {
        teeth: false,
        ..attack(name, run)
    }
}

pub(crate) const LIST: &[Attack] = &[
    perhaps("privcmd", || {
        opens("/dev/xen/privcmd") || opens("/proc/xen/privcmd")
    }),
    perhaps("the hypercall buffers", || opens("/dev/xen/hypercall")),
    perhaps("grants of others", || opens("/dev/xen/gntdev")),
    // Of a descriptor that it has from its channel: the filter has to know the requests.
    attack("a map of a grant", || asks(0x18_4700)),
    attack("a copy of a grant", || asks(0x10_4708)),
    attack("a new grant", || asks(0x10_4705)),
    attack("an event channel", || asks(0x08_4501)),
    perhaps("xenstore by its device", || opens("/dev/xen/xenbus")),
    perhaps("xenstore by its socket", || {
        connects(Path::new("/run/xenstored/socket"))
    }),
    attack("the secrets", || fs::read(given("secrets")).is_ok()),
    attack("the list of users", || fs::read("/etc/passwd").is_ok()),
    attack("the control socket", || connects(&given("control.sock"))),
    attack("a socket of the machine", || {
        gives(libc::SYS_socket, [libc::AF_UNIX as u64, 1, 0])
    }),
    attack("a socket of the network", || {
        gives(libc::SYS_socket, [libc::AF_INET as u64, 1, 0])
    }),
    attack("a socket of the kernel", || {
        gives(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0])
    }),
    attack("another worker by a signal", || {
        gives(libc::SYS_kill, [victim(), 0, 0])
    }),
    attack("the parent by a signal", || {
        gives(
            libc::SYS_kill,
            [u64::from(std::os::unix::process::parent_id()), 0, 0],
        )
    }),
    perhaps("another worker by ptrace", || {
        // PTRACE_SEIZE
        gives(libc::SYS_ptrace, [0x4206, victim(), 0])
    }),
    attack("another worker by a pidfd", || {
        gives(libc::SYS_pidfd_open, [victim(), 0, 0])
    }),
    attack("another worker's memory", || {
        opens(&format!("/proc/{}/mem", victim()))
    }),
    attack("another worker's environment", || {
        fs::read(format!("/proc/{}/environ", victim())).is_ok()
    }),
    perhaps("another worker's limits", || {
        gives(libc::SYS_prlimit64, [victim(), 7, 0])
    }),
    attack("another program", || {
        std::process::Command::new("/proc/self/exe")
            .env("VGPU_TEST_ROLE", "nobody none")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok()
    }),
    attack("another process", forks),
    attack("a new file at the root", || {
        makes(Path::new("/vgpu-test-of-a-worker"))
    }),
    attack("a new file in /tmp", || {
        makes(Path::new("/tmp/vgpu-test-of-a-worker"))
    }),
    attack("a new file beside the secrets", || makes(&given("new"))),
    attack("being root again", || gives(libc::SYS_setresuid, [0, 0, 0])),
    attack("a mount", || {
        let path = c"/tmp".as_ptr() as u64;
        // A change of nothing: MS_REMOUNT | MS_BIND of what is no mount, which root is refused otherwise.
        errno_of(libc::SYS_mount, [path, path, path, 0]) != Some(libc::EPERM)
    }),
    attack("namespaces of its own", || {
        gives(libc::SYS_unshare, [libc::CLONE_NEWUTS as u64, 0, 0])
    }),
    attack("another's namespaces", || {
        errno_of(libc::SYS_setns, [u64::MAX, 0, 0, 0]) != Some(libc::EPERM)
    }),
    attack("another root", || {
        let path = c"/".as_ptr() as u64;
        gives(libc::SYS_chroot, [path, 0, 0])
    }),
    perhaps("programs in the kernel", || {
        errno_of(libc::SYS_bpf, [u64::MAX, 0, 0, 0]) != Some(libc::EPERM)
    }),
    attack("the kernel's keys", || {
        errno_of(libc::SYS_keyctl, [u64::MAX, 0, 0, 0]) != Some(libc::EPERM)
    }),
    perhaps("counters of performance", || {
        errno_of(libc::SYS_perf_event_open, [0, 0, 0, 0]) != Some(libc::EPERM)
    }),
    attack("faults of its own", || {
        errno_of(libc::SYS_userfaultfd, [u64::MAX, 0, 0, 0]) != Some(libc::EPERM)
    }),
    perhaps("rings of requests", || {
        errno_of(libc::SYS_io_uring_setup, [0, 0, 0, 0]) != Some(libc::EPERM)
    }),
    attack("another's memory by number", || {
        errno_of(libc::SYS_process_vm_readv, [victim(), 0, 0, 0]) != Some(libc::EPERM)
    }),
    perhaps("modules of the kernel", || {
        errno_of(libc::SYS_init_module, [0, 0, 0, 0]) != Some(libc::EPERM)
    }),
    attack("signals by descriptors", || {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap_or_else(|_| {
            // No sockets: standard input does as well.
            (unowned_standard_input(), unowned_standard_input())
        });
        use std::os::fd::AsRawFd;
        gives(
            libc::SYS_fcntl,
            [ours.as_raw_fd() as u64, libc::F_SETOWN as u64, victim()],
        )
    }),
    attack("being traced", || {
        gives(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0])
    }),
];

fn unowned_standard_input() -> std::os::unix::net::UnixStream {
    use std::os::fd::AsFd;
    std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("dup is allowed")
        .into()
}

fn given(name: &str) -> PathBuf {
    PathBuf::from(env::var_os("VGPU_TEST_DIRECTORY").expect("set by the test")).join(name)
}

fn victim() -> u64 {
    let victim = env::var("VGPU_TEST_VICTIM").expect("set by the test");
    victim.parse().expect("a number")
}

fn opens(path: &str) -> bool {
    File::options().read(true).write(true).open(path).is_ok()
}

fn makes(path: &Path) -> bool {
    let made = File::create(path).is_ok();
    // Only the unconfined one gets here.
    let _ = fs::remove_file(path);
    made
}

fn connects(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// Whether a system call succeeds. None of those made here writes to memory of this process.
fn gives(call: c_long, arguments: [u64; 3]) -> bool {
    let [first, second, third] = arguments;
    errno_of(call, [first, second, third, 0]).is_none()
}

/// The error of a system call, if it fails. None of those made here writes to memory of this process.
fn errno_of(call: c_long, arguments: [u64; 4]) -> Option<i32> {
    let [a, b, c, d] = arguments.map(|argument| argument as c_ulong);
    // SAFETY: the calls of the list take numbers, null pointers and strings that live as long as the program.
    let result = unsafe { libc::syscall(call, a, b, c, d, 0 as c_ulong) };
    (result < 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// Whether a request gets as far as a descriptor, which here is none of Xen's.
fn asks(request: u64) -> bool {
    errno_of(libc::SYS_ioctl, [0, request, 0, 0]) != Some(libc::EPERM)
}

fn forks() -> bool {
    // SAFETY: this process has one thread, and the child ends at once.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        child if child > 0 => {
            // SAFETY: waits for the child above.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            true
        }
        _ => false,
    }
}
