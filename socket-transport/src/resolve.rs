//! From a host's name to addresses, within a deadline.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;

use crate::error::ConnectError;

/// Most addresses tried for one name.
const MOST_ADDRESSES: usize = 16;

/// Most requests to the system's resolver under way in the whole process. It cannot be told to give
/// up, so a request that has outlived its deadline keeps a thread until it ends by itself.
const MOST_QUESTIONS: usize = 16;

static QUESTIONS: AtomicUsize = AtomicUsize::new(0);

/// Interval at which a wait checks whether to give up.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A place among [`MOST_QUESTIONS`].
struct Question;

impl Question {
    fn begin() -> Option<Self> {
        // Relaxed: the count guards no other data; `drop` in any thread is its partner.
        let more = |n| (n < MOST_QUESTIONS).then_some(n + 1);
        QUESTIONS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()
            .map(|_| Self)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Relaxed: see `begin`, its partner.
        QUESTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The addresses of `host`, with `port`.
pub(crate) fn resolve(
    host: &str,
    port: u16,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if let Some(address) = with_zone(host, port)? {
        return Ok(vec![address]);
    }
    let failed = |why: &str| {
        ConnectError::new(
            format!("the name {host} has no address: {why}"),
            "check the name and this machine's resolver (getent hosts), or write the address",
        )
    };
    let question = Question::begin()
        .ok_or_else(|| failed("earlier questions to the resolver still wait for answers"))?;
    let (answer, answers) = mpsc::channel();
    let asked = (host.to_owned(), port);
    thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            let found = asked
                .to_socket_addrs()
                .map(|found| found.take(MOST_ADDRESSES).collect::<Vec<_>>());
            drop(question);
            // Fails if nobody waits for it any more.
            let _ = answer.send(found);
        })
        .map_err(|error| failed(&error.to_string()))?;
    loop {
        if interrupted() {
            return Err(ConnectError::interrupted());
        }
        // Read before checking, so that one check follows the deadline.
        let left = deadline.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left.min(STOP_CHECK_INTERVAL)) {
            Ok(Ok(addresses)) if addresses.is_empty() => return Err(failed("none is known")),
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => return Err(failed(&error.to_string())),
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
            Err(_) => return Err(failed("the resolver did not answer in time")),
        }
    }
}

/// The address in a text such as `fe80::1%eth0`; `None` if it is anything else.
fn with_zone(host: &str, port: u16) -> Result<Option<SocketAddr>, ConnectError> {
    let Some((address, zone)) = host.split_once('%') else {
        return Ok(None);
    };
    let Ok(address) = address.parse::<Ipv6Addr>() else {
        return Ok(None);
    };
    let index = match zone.parse() {
        Ok(index) => index,
        Err(_) => if_nametoindex(zone).map_err(|errno| {
            ConnectError::new(
                format!("{host} names the interface {zone}: {}", errno.desc()),
                "write the name or the number of one of this machine's interfaces after % (ip link)",
            )
        })?,
    };
    Ok(Some(SocketAddrV6::new(address, port, 0, index).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_resolver() {
        let past = Instant::now();
        for host in ["127.0.0.1", "::1"] {
            let found = resolve(host, 7, past, &|| true).unwrap();
            assert_eq!(found, [SocketAddr::new(host.parse().unwrap(), 7)]);
        }
    }

    #[test]
    fn zones_are_interfaces_by_name_or_by_number() {
        let past = Instant::now();
        let of = |host: &str| resolve(host, 7, past, &|| true);
        // Every machine has a loopback interface, and it is the first.
        for host in ["fe80::1%lo", "fe80::1%1"] {
            match of(host).unwrap()[..] {
                [SocketAddr::V6(found)] => {
                    assert_eq!((found.scope_id(), found.port()), (1, 7), "{host}");
                }
                ref other => panic!("{other:?}"),
            }
        }
        let error = of("fe80::1%no-such-if").unwrap_err().to_string();
        assert!(error.contains("interface no-such-if"), "{error}");
    }

    #[test]
    fn names_are_bounded_by_the_deadline_and_by_interrupts() {
        let now = Instant::now();
        let error = resolve("localhost", 7, now, &|| true).unwrap_err();
        assert!(error.is_interrupted());
        let far = now + Duration::from_secs(60);
        let found = resolve("localhost", 7, far, &|| false).unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        // RFC 2606 reserves this name, so it never exists; with an unreachable resolver the error
        // takes long.
        let soon = Instant::now() + Duration::from_secs(5);
        let error = resolve("nobody.invalid", 7, soon, &|| false).unwrap_err();
        assert!(error.to_string().contains("nobody.invalid"), "{error}");
    }
}
