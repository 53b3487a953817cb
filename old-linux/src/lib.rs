//! A process that has the system calls of Linux 4.19, which XCP-ng 8's dom0 runs, and no newer ones.
//!
//! A seccomp filter answers what came later as that kernel would: unknown calls with `ENOSYS`, unknown
//! flags and operations with `EINVAL`, unknown socket options with `ENOPROTOOPT`. It shows that a program
//! does without them or falls back in good order. It doesn't show how 4.19 behaves otherwise: the kernel's
//! version, `/proc`, `/sys` and the workings of older calls stay those of the kernel that runs.
//!
//! Numbers and values are those of the kernel's headers (`unistd_64.h`, `uapi/linux/…`, `uapi/asm-generic/…`).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch, apply_filter,
};

type Rules = BTreeMap<i64, Vec<Rule>>;

/// The first number after the calls of Linux 4.19: `rseq` is its last.
const FIRST_UNKNOWN: i64 = if cfg!(target_arch = "x86_64") {
    335
} else {
    294
};

/// A number that Linux won't have reached when this software is forgotten. On x86-64 those from 512 on belong
/// to another, older binary interface.
const LAST_UNKNOWN: i64 = 511;

/// `PR_PAC_RESET_KEYS` (5.0): prctl's later options are this and higher, up to 255.
const FIRST_UNKNOWN_PRCTL: u64 = 54;
const LAST_UNKNOWN_PRCTL: u64 = 255;

/// `PR_SET_VMA` (5.17), which glibc and allocators use to name memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// `MADV_COLD` (5.4) up to `MADV_COLLAPSE` (6.1).
const FIRST_UNKNOWN_MADVICE: u64 = 20;
const LAST_UNKNOWN_MADVICE: u64 = 25;

/// `MFD_NOEXEC_SEAL`, `MFD_EXEC` (6.3).
const UNKNOWN_MEMFD: u64 = 0x18;

/// `F_SEAL_FUTURE_WRITE` (5.1), `F_SEAL_EXEC` (6.3).
const UNKNOWN_SEALS: u64 = 0x30;

/// `MREMAP_DONTUNMAP` (5.7).
const UNKNOWN_MREMAP: u64 = 4;

/// `P_PIDFD` of waitid (5.4).
const P_PIDFD: u64 = 3;

/// membarrier's commands for rseq (5.10) and its query of registrations (6.3).
const UNKNOWN_MEMBARRIER: u64 = 0x380;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` (5.0), `_TSYNC_ESRCH` (5.7), `_WAIT_KILLABLE_RECV` (5.19).
const UNKNOWN_SECCOMP: u64 = 0x38;

/// `SO_BINDTOIFINDEX` (5.1) and what follows it, `SO_PEERPIDFD` (6.5) among them.
const FIRST_UNKNOWN_SOCKET_OPTION: u64 = 62;
const LAST_UNKNOWN_SOCKET_OPTION: u64 = 255;

/// The reason why the filter can't be had.
#[derive(Debug)]
pub struct Error(seccompiler::Error);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no filter of system calls: {}", self.0)
    }
}

impl std::error::Error for Error {}

impl From<seccompiler::Error> for Error {
    fn from(error: seccompiler::Error) -> Self {
        Self(error)
    }
}

impl From<seccompiler::BackendError> for Error {
    fn from(error: seccompiler::BackendError) -> Self {
        Self(error.into())
    }
}

/// Takes the newer calls away from the calling thread, and from all threads and processes that it starts
/// afterwards. There is no way back. It also sets `no_new_privs`: set-user-id programs then give no rights.
///
/// # Errors
/// The kernel has no seccomp filters, or this processor is neither x86-64 nor aarch64.
pub fn restrict() -> Result<(), Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let answers = [
        (libc::ENOSYS, unknown_calls()),
        (libc::EINVAL, unknown_flags()?),
        (libc::ENOPROTOOPT, unknown_socket_options()?),
    ];
    for (errno, rules) in answers {
        let answer = SeccompAction::Errno(errno.cast_unsigned());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)?;
        let program: BpfProgram = filter.try_into()?;
        apply_filter(&program)?;
    }
    Ok(())
}

fn unknown_calls() -> Rules {
    (FIRST_UNKNOWN..=LAST_UNKNOWN)
        .map(|number| (number, Vec::new()))
        .collect()
}

fn unknown_flags() -> Result<Rules, Error> {
    let prctl = [
        rule([
            at_least(0, FIRST_UNKNOWN_PRCTL)?,
            at_most(0, LAST_UNKNOWN_PRCTL)?,
        ])?,
        rule([equal(0, PR_SET_VMA)?])?,
    ];
    let madvise = rule([
        at_least(2, FIRST_UNKNOWN_MADVICE)?,
        at_most(2, LAST_UNKNOWN_MADVICE)?,
    ])?;
    let seals = |bits| rule([equal(1, command(libc::F_ADD_SEALS))?, has_bit(2, bits)?]);
    let mut rules = Rules::from([
        (libc::SYS_prctl, prctl.to_vec()),
        (libc::SYS_madvise, vec![madvise]),
        (libc::SYS_waitid, vec![rule([equal(0, P_PIDFD)?])?]),
    ]);
    // A comparison sees one bit at a time: "any of these" is a rule for each.
    rules.insert(
        libc::SYS_memfd_create,
        each_bit(UNKNOWN_MEMFD, |b| rule([has_bit(1, b)?]))?,
    );
    rules.insert(libc::SYS_fcntl, each_bit(UNKNOWN_SEALS, seals)?);
    rules.insert(
        libc::SYS_mremap,
        each_bit(UNKNOWN_MREMAP, |b| rule([has_bit(3, b)?]))?,
    );
    rules.insert(
        libc::SYS_membarrier,
        each_bit(UNKNOWN_MEMBARRIER, |b| rule([has_bit(0, b)?]))?,
    );
    let set_filter = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    rules.insert(
        libc::SYS_seccomp,
        each_bit(UNKNOWN_SECCOMP, |b| {
            rule([equal(0, set_filter)?, has_bit(1, b)?])
        })?,
    );
    Ok(rules)
}

fn unknown_socket_options() -> Result<Rules, Error> {
    let options = rule([
        equal(1, command(libc::SOL_SOCKET))?,
        at_least(2, FIRST_UNKNOWN_SOCKET_OPTION)?,
        at_most(2, LAST_UNKNOWN_SOCKET_OPTION)?,
    ])?;
    Ok(Rules::from([
        (libc::SYS_getsockopt, vec![options.clone()]),
        (libc::SYS_setsockopt, vec![options]),
    ]))
}

fn rule<const N: usize>(conditions: [Condition; N]) -> Result<Rule, Error> {
    Ok(Rule::new(conditions.to_vec())?)
}

fn each_bit(bits: u64, rule: impl Fn(u64) -> Result<Rule, Error>) -> Result<Vec<Rule>, Error> {
    (0..u64::BITS)
        .map(|bit| 1 << bit)
        .filter(|bit| bits & bit != 0)
        .map(rule)
        .collect()
}

fn command(number: libc::c_int) -> u64 {
    u64::from(number.cast_unsigned())
}

fn equal(argument: u8, value: u64) -> Result<Condition, Error> {
    Ok(Condition::new(argument, Length::Dword, Compare::Eq, value)?)
}

fn at_least(argument: u8, value: u64) -> Result<Condition, Error> {
    Ok(Condition::new(argument, Length::Dword, Compare::Ge, value)?)
}

fn at_most(argument: u8, value: u64) -> Result<Condition, Error> {
    Ok(Condition::new(argument, Length::Dword, Compare::Le, value)?)
}

/// Whether this one bit is set.
fn has_bit(argument: u8, bit: u64) -> Result<Condition, Error> {
    Ok(Condition::new(
        argument,
        Length::Dword,
        Compare::MaskedEq(bit),
        bit,
    )?)
}
