//! The answers to system calls newer than Linux 4.19, and to those that it has.

use std::io;
use std::thread;

/// Error numbers of a call in a thread that has given the newer calls up; 0 for none.
fn errors(ask: impl FnOnce() -> Vec<i32> + Send + 'static) -> Vec<i32> {
    thread::spawn(|| {
        old_linux::restrict().expect("seccomp filters");
        ask()
    })
    .join()
    .expect("no panic")
}

fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> i32 {
    let [a, b, c, d] = arguments;
    // SAFETY: every call here has arguments that the kernel refuses, or that touch no memory of ours.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    match result {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

#[test]
fn newer_calls_are_unknown() {
    let answers = errors(|| {
        [
            libc::SYS_pidfd_send_signal,
            libc::SYS_io_uring_setup,
            libc::SYS_open_tree,
            libc::SYS_pidfd_open,
            libc::SYS_clone3,
            libc::SYS_close_range,
            libc::SYS_openat2,
            libc::SYS_pidfd_getfd,
            libc::SYS_faccessat2,
            libc::SYS_process_madvise,
            libc::SYS_epoll_pwait2,
            libc::SYS_mount_setattr,
            libc::SYS_landlock_create_ruleset,
            libc::SYS_futex_waitv,
        ]
        .map(|number| call(number, [0; 4]))
        .to_vec()
    });
    assert!(
        answers.iter().all(|errno| *errno == libc::ENOSYS),
        "{answers:?}"
    );
}

#[test]
fn newer_flags_are_wrong_and_older_ones_work() {
    let answers = errors(|| {
        let name = c"x".as_ptr() as libc::c_long;
        let memfd = |flags| call(libc::SYS_memfd_create, [name, flags, 0, 0]);
        vec![
            memfd(0x8),
            memfd(0x10),
            call(libc::SYS_prctl, [0x5356_4d41, 0, 0, 0]),
            call(libc::SYS_prctl, [62, 0, 0, 0]),
            call(libc::SYS_madvise, [0, 0, 21, 0]),
            call(libc::SYS_waitid, [3, 0, 0, libc::WEXITED.into()]),
            // Those of 4.19: PR_GET_DUMPABLE, MFD_CLOEXEC with MFD_ALLOW_SEALING, MADV_NORMAL.
            call(libc::SYS_prctl, [3, 0, 0, 0]),
            memfd(3),
            call(libc::SYS_madvise, [0, 0, 0, 0]),
        ]
    });
    let (newer, older) = answers.split_at(6);
    assert_eq!(newer, [libc::EINVAL; 6]);
    assert_eq!(older, [0; 3]);
}

#[test]
fn newer_socket_options_are_unknown() {
    let answers = errors(|| {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket).into();
        let level = libc::SOL_SOCKET.into();
        vec![call(libc::SYS_getsockopt, [fd, level, 77, 0])]
    });
    assert_eq!(answers, [libc::ENOPROTOOPT]);
}

#[test]
fn processes_inherit_it_and_other_threads_do_not() {
    let program = env!("CARGO_BIN_EXE_old-linux");
    let status = std::process::Command::new(program)
        .args(["grep", "-q", "^Seccomp:\t2$", "/proc/self/status"])
        .status()
        .expect("the program starts");
    assert!(status.success(), "{status}");
    let answer = errors(Vec::new);
    assert!(answer.is_empty());
    let own = std::fs::read_to_string("/proc/thread-self/status").expect("proc");
    assert!(own.lines().any(|line| line == "NoNewPrivs:\t0"), "{own}");
}
