//! System calls permitted to a worker: a seccomp filter over all of its threads.
//!
//! Other calls are refused with EPERM, and the process goes on. Killing it would be safer only
//! against a worker that was taken over, which gains nothing from a refusal; but NVIDIA's closed
//! driver library makes different calls in each version, and works without most of those refused.
//! Refusals are not logged: a worker that was taken over could fill dom0's log with them.

use std::collections::BTreeMap;

use libc::c_long;
use nix::unistd::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch,
    apply_filter_all_threads,
};

use super::Needs;

type Rules = BTreeMap<i64, Vec<Rule>>;

/// Calls of every process, and all those of a compiler: memory, threads, time, exit, and bytes on the one socket that it
/// has. What is added here a guest's source can use.
const ALWAYS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls of every session besides: bytes on other descriptors, and waiting for them.
const SESSION: &[c_long] = &[
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_mincore,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];

/// The same, in the calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
const SESSION_OLD: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_arch_prctl,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const SESSION_OLD: &[c_long] = &[];

/// Reading what there is of files, for what the worker sees of them.
const READS_FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_fadvise64,
];
#[cfg(target_arch = "x86_64")]
const READS_FILES_OLD: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
];
#[cfg(not(target_arch = "x86_64"))]
const READS_FILES_OLD: &[c_long] = &[];

/// Working in a directory.
const WRITES_FILES: &[c_long] = &[
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];
#[cfg(target_arch = "x86_64")]
const WRITES_FILES_OLD: &[c_long] = &[libc::SYS_renameat, libc::SYS_chown];
#[cfg(not(target_arch = "x86_64"))]
const WRITES_FILES_OLD: &[c_long] = &[libc::SYS_renameat];

/// Further calls of NVIDIA's driver: placement of memory and threads, and devices.
const CUDA: &[c_long] = &[
    libc::SYS_ioctl,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mbind,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    // With a socket of its own, below: without one, cuInit fails. It removes a file first whose name is empty,
    // and takes no error for it but ENOENT. There is nothing that could be removed: the root is read-only.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_unlinkat,
];
#[cfg(target_arch = "x86_64")]
const CUDA_OLD: &[c_long] = &[libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const CUDA_OLD: &[c_long] = &[];

/// Reaching another mediator.
const RELAY: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_sendmmsg,
    libc::SYS_socketpair,
    libc::SYS_flock,
    libc::SYS_mkdirat,
];

/// Request numbers of ioctl that any descriptor may get: blocking or not, closed at exec or not, how
/// much there is to read, and whether it is a terminal.
const ANY_IOCTL: &[u64] = &[0x5421, 0x5451, 0x5450, 0x541b, 0x5401];

/// The second byte of the request numbers of gntdev (`G`) and evtchn (`E`), from Linux'
/// `xen/gntdev.h` and `xen/evtchn.h`.
const GNTDEV: u64 = 0x47;
const EVTCHN: u64 = 0x45;

/// Numbers of gntdev's requests that map nothing: IOCTL_GNTDEV_UNMAP_GRANT_REF,
/// IOCTL_GNTDEV_SET_UNMAP_NOTIFY; of gntalloc's, IOCTL_GNTALLOC_DEALLOC_GREF and
/// IOCTL_GNTALLOC_SET_UNMAP_NOTIFY.
const GNTDEV_AFTERWARDS: [u64; 4] = [1, 7, 6, 2];

/// Of evtchn's: IOCTL_EVTCHN_UNBIND and IOCTL_EVTCHN_NOTIFY.
const EVTCHN_AFTERWARDS: [u64; 2] = [3, 4];

/// Numbers of requests of either are below this.
const XEN_REQUESTS: u64 = 32;

/// Puts the filter of a worker with these needs over all threads. There is no way back.
pub(super) fn restrict(needs: &Needs) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("no filter: {error}");
    // glibc then starts threads by clone, whose flags can be seen.
    let unknown = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    let unknown = program(
        unknown,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
    );
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let maps = maps().and_then(|maps| program(maps, SeccompAction::Allow, refused.clone()));
    let allowed = rules(needs).and_then(|rules| program(rules, refused, SeccompAction::Allow));
    // The list of what is allowed comes last: it does not allow to add another.
    let programs = match needs.cuda {
        true => vec![unknown, maps, allowed],
        false => vec![unknown, allowed],
    };
    for program in programs {
        let program = program.map_err(|error| failed(&error))?;
        apply_filter_all_threads(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()
}

/// Requests of gntdev and evtchn that map or bind: refused to a worker with CUDA, which may make all others, and whose
/// descriptors of these two stay.
fn maps() -> Result<Rules, seccompiler::BackendError> {
    let mut requests = Vec::new();
    for (kind, afterwards) in [
        (GNTDEV, &GNTDEV_AFTERWARDS[..]),
        (EVTCHN, &EVTCHN_AFTERWARDS[..]),
    ] {
        let others = (0..XEN_REQUESTS).filter(|number| !afterwards.contains(number));
        for number in others {
            let of_it = Compare::MaskedEq(0xffff);
            let this = Condition::new(1, Length::Dword, of_it, kind << 8 | number)?;
            requests.push(Rule::new(vec![this])?);
        }
    }
    Ok([(libc::SYS_ioctl, requests)].into_iter().collect())
}

fn rules(needs: &Needs) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| {
        for call in calls {
            rules.insert(*call, Vec::new());
        }
    };
    allow(ALWAYS);
    if !needs.compiler {
        allow(SESSION);
        allow(SESSION_OLD);
        allow(READS_FILES);
        allow(READS_FILES_OLD);
    }
    if needs.served.is_some() {
        allow(WRITES_FILES);
        allow(WRITES_FILES_OLD);
    }
    if needs.cuda {
        allow(CUDA);
        allow(CUDA_OLD);
    }
    if needs.relay.is_some() {
        allow(RELAY);
    }
    let equal = |argument, value| Condition::new(argument, Length::Dword, Compare::Eq, value);
    let own = u64::from(getpid().as_raw().cast_unsigned());

    // Threads, and nothing that is another process or has namespaces of its own.
    let thread = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let thread = u64::from(thread.cast_unsigned());
    let kinds = thread | u64::from(NEW_NAMESPACES.cast_unsigned());
    let clone = Condition::new(0, Length::Dword, Compare::MaskedEq(kinds), thread)?;
    rules.insert(libc::SYS_clone, vec![Rule::new(vec![clone])?]);
    // For the other filter to answer: of two refusals the later filter's would count.
    rules.insert(libc::SYS_clone3, Vec::new());

    // Signals to itself: abort, and the end with the broker's.
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(call, vec![Rule::new(vec![equal(0, own)?])?]);
    }

    // Limits can be read, of itself.
    let limits = vec![
        equal(0, 0)?,
        Condition::new(2, Length::Qword, Compare::Eq, 0)?,
    ];
    rules.insert(libc::SYS_prlimit64, vec![Rule::new(limits)?]);

    // Names of threads and of memory.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let names = names.map(|name| Rule::new(vec![equal(0, u64::from(name.cast_unsigned()))?]));
    rules.insert(
        libc::SYS_prctl,
        names.into_iter().collect::<Result<_, _>>()?,
    );

    // Of fcntl nothing that sends signals to the owner of a descriptor, who may be anybody.
    let commands = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETLK,
        libc::F_SETLK,
        libc::F_OFD_GETLK,
        libc::F_OFD_SETLK,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
        libc::F_GETPIPE_SZ,
    ];
    let commands =
        commands.map(|command| Rule::new(vec![equal(1, u64::from(command.cast_unsigned()))?]));
    rules.insert(
        libc::SYS_fcntl,
        commands.into_iter().collect::<Result<_, _>>()?,
    );

    if !needs.cuda {
        let mut requests = Vec::new();
        for request in ANY_IOCTL {
            requests.push(Rule::new(vec![equal(1, *request)?])?);
        }
        let (gntdev, evtchn) = match (needs.xen, needs.relay.is_some()) {
            (_, true) => {
                for kind in [GNTDEV, EVTCHN] {
                    let of_it = Compare::MaskedEq(0xff00);
                    let any = Condition::new(1, Length::Dword, of_it, kind << 8)?;
                    requests.push(Rule::new(vec![any])?);
                }
                (&[][..], &[][..])
            }
            (true, false) => (&GNTDEV_AFTERWARDS[..], &EVTCHN_AFTERWARDS[..]),
            (false, false) => (&[][..], &[][..]),
        };
        for (kind, numbers) in [(GNTDEV, gntdev), (EVTCHN, evtchn)] {
            for number in numbers {
                let of_it = Compare::MaskedEq(0xffff);
                let this = Condition::new(1, Length::Dword, of_it, kind << 8 | number)?;
                requests.push(Rule::new(vec![this])?);
            }
        }
        rules.insert(libc::SYS_ioctl, requests);
    }

    let families: &[libc::c_int] = match (&needs.relay, needs.cuda) {
        (Some(_), _) => &[
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
        ],
        // NVIDIA's library listens at an abstract name, for other processes of the same program. In a network
        // namespace of its own nobody hears it, and to connect is refused.
        (None, true) => &[libc::AF_UNIX],
        (None, false) => &[],
    };
    if !families.is_empty() {
        let families = families
            .iter()
            .map(|family| Rule::new(vec![equal(0, u64::from(family.cast_unsigned()))?]));
        rules.insert(libc::SYS_socket, families.collect::<Result<_, _>>()?);
    }
    Ok(rules)
}

/// Flags of a process in namespaces of its own.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
