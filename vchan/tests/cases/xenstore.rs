//! Cases 46 to 48: values that the peer writes into xenstore. The real program runs against a
//! xenstored of ours; the lab repeats this with real ones.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::xenstore_rs;
use crate::xenstored::{Xenstored, domain_one, failed, start};

/// A busy machine needs this long to start a program and have it ask.
const CONNECT: &str = "connect --peer 1 --path data/x --timeout 3 --echo";

/// The client's error for these two values.
fn offered(ring_ref: &'static [u8], event_channel: &'static [u8]) -> String {
    let store = Xenstored::new(move |kind, path| {
        domain_one(kind, path, |path| {
            Some(match path {
                "/local/domain/1/data/x/ring-ref" => Ok(ring_ref.to_vec()),
                "/local/domain/1/data/x/event-channel" => Ok(event_channel.to_vec()),
                _ => Err("ENOENT"),
            })
        })
    });
    failed(start(&store.socket(), CONNECT))
}

#[test]
fn case_46_keys_that_are_no_numbers() {
    let lies: [(&'static [u8], &str); 11] = [
        (b"-1", "not a plain decimal"),
        (b"0", "outside 1..="),
        (b"4294967296", "outside 1..="),
        (b"18446744073709551617", "outside 1..="),
        (b"0x10", "not a plain decimal"),
        (b"ten", "not a plain decimal"),
        (b"8\n", "not a plain decimal"),
        (b"8\0\0", "not a plain decimal"),
        (b" 8", "not a plain decimal"),
        (b"", "empty"),
        (b"\xFF\xFE", "not UTF-8"),
    ];
    for (lie, why) in lies {
        let error = offered(b"8", lie);
        assert!(error.contains(why), "{lie:?}: {error}");
        let error = offered(lie, b"8");
        assert!(error.contains(why), "{lie:?}: {error}");
    }
    // As long as a message of xenstore can be.
    let store = Xenstored::new(move |kind, path| {
        domain_one(kind, path, |path| {
            Some(if path.ends_with("event-channel") {
                Ok(vec![b'9'; 4096])
            } else {
                Err("ENOENT")
            })
        })
    });
    let error = failed(start(&store.socket(), CONNECT));
    assert!(
        error.contains("outside 1..=") && error.len() < 200,
        "{error}"
    );

    // Deleted between the two reads: treated as not there yet.
    let reads = AtomicU32::new(0);
    let store = Xenstored::new(move |kind, path| {
        domain_one(kind, path, |path| {
            let first = path.ends_with("event-channel");
            if first {
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Some(if first {
                Ok(b"8".to_vec())
            } else {
                Err("ENOENT")
            })
        })
    });
    let error = failed(start(&store.socket(), CONNECT));
    assert!(error.contains("no vchan server has published"), "{error}");
    let asked = store.nodes_read();
    assert!(asked.len() > 4, "it looked again: {asked:?}");
}

/// libxenvchan cuts a node's path off at 63 characters; here every length is whole or refused.
#[test]
fn case_47_paths_longer_than_a_fixed_buffer() {
    // All at once: each waits until its time is up.
    let clients = [49, 50, 63, 64, 65, 200, 990].map(|length| {
        let path = format!("data/{}", "x".repeat(length - 5));
        let store = Xenstored::new(|kind, path| domain_one(kind, path, |_| Some(Err("ENOENT"))));
        let client = start(
            &store.socket(),
            &format!("connect --peer 1 --path {path} --timeout 3 --echo"),
        );
        (length, path, store, client)
    });
    for (length, path, store, client) in clients {
        let error = failed(client);
        assert!(error.contains(&path), "{error}");
        let whole = format!("/local/domain/1/{path}/event-channel");
        let asked = store.nodes_read();
        assert!(asked.contains(&whole), "{length}: {asked:?}");
        assert!(
            asked.iter().all(|node| *node == whole
                || ["/local/domain/1", "/local/domain/1/vm"].contains(&node.as_str())),
            "{length}: {asked:?}"
        );
    }
    for length in [991, 1024, 4096] {
        let path = "x".repeat(length);
        let store = Xenstored::new(|_, path| panic!("asked for {path}"));
        let error = failed(start(
            &store.socket(),
            &format!("connect --peer 1 --path {path} --timeout 0.2 --echo"),
        ));
        assert!(error.contains(&length.to_string()), "{error}");
    }
}

/// Keys that are different at every look: keys of two servers are never combined, and the time
/// ends.
#[test]
fn case_48_keys_swapped_between_the_reads() {
    let reads = AtomicU32::new(8);
    let store = Xenstored::new(move |kind, path| {
        domain_one(kind, path, |path| {
            if path.ends_with("vchan-extension") {
                return Some(Err("ENOENT"));
            }
            let n = reads.fetch_add(1, Ordering::Relaxed);
            Some(Ok(n.to_string().into_bytes()))
        })
    });
    let error = failed(start(&store.socket(), CONNECT));
    assert!(error.contains("keep changing"), "{error}");
}

/// The second look at the keys gets no answer before the time ends: that is no fault of xenstored.
#[test]
fn a_second_look_that_the_deadline_cuts_off_changes_no_reason() {
    let began = Instant::now();
    let (looks, numbers) = (AtomicU32::new(0), AtomicU32::new(8));
    let store = Xenstored::new(move |kind, path| {
        domain_one(kind, path, |path| {
            if path.ends_with("vchan-extension") {
                return Some(Err("ENOENT"));
            }
            // The event channel is read first, by each look.
            let second =
                path.ends_with("event-channel") && looks.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            if second && began.elapsed() > Duration::from_millis(2400) {
                std::thread::sleep(Duration::from_secs(3));
            }
            let n = numbers.fetch_add(1, Ordering::Relaxed);
            Some(Ok(n.to_string().into_bytes()))
        })
    });
    let error = failed(start(&store.socket(), CONNECT));
    assert!(error.contains("keep changing"), "{error}");
}

#[test]
fn the_same_with_xenstore_rs() {
    let cases = [
        "xenstore::",
        "case_41_xenstore",
        "case_42_xenstored",
        "case_43_no_watch",
    ];
    xenstore_rs::run_again(&cases, "the_same_with_xenstore_rs");
}
