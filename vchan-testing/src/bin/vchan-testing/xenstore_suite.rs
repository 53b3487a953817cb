//! The suite for every client of xenstore with every xenstored, in dom0 and in a guest. The client is
//! the one that `VCHAN_XENSTORE` names.

use std::thread;
use std::time::{Duration, Instant};

use vchan::xen::store::provider::Provider;
use vchan::xen::store::{Store, StoreError, VALUE_MAX, Waited};
use vgpu_cli::{Failure, print_line};

/// Far beyond any request.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Silence after which all events count as received.
const QUIET_TIME: Duration = Duration::from_millis(500);

/// More nodes than have names fitting into one message of xenstore, which has 4,096 bytes.
const MANY_NODES: usize = 120;

/// A case; its error names the failed expectation.
type Case = fn(&Suite) -> Result<(), String>;

const CASES: &[(&str, Case)] = &[
    ("values_come_back_as_written", values),
    ("a_node_that_is_not_there_is_told_from_others", absent),
    ("nodes_are_listed_and_removed_with_all_below", tree),
    ("a_long_list_comes_whole_or_not_at_all", long_list),
    ("what_may_not_be_touched_is_denied", denied),
    ("callers_at_once_get_their_own_answers", callers),
    ("an_answer_beyond_its_deadline_is_no_other_ones", late),
    ("a_watch_fires_at_once_and_at_changes", watch),
    ("events_that_nobody_takes_hold_up_nothing", unread_events),
    ("the_privileged_can_watch_for_the_end_of_domains", release),
];

/// The node below which the cases write.
struct Suite {
    store: Store,
    folder: String,
    provider: Provider,
}

/// Runs every case below the node `folder`, which is removed at the end.
pub(crate) fn run(folder: &str) -> Result<(), Failure> {
    let failure = |error: StoreError| Failure::new(error.to_string(), error.advice());
    let suite = Suite {
        store: Store::open(soon()).map_err(failure)?,
        folder: folder.to_owned(),
        provider: Provider::current()
            .map_err(|error| Failure::new(error.to_string(), "set it to own or xenstore-rs"))?,
    };
    let mut failed = 0;
    for (name, case) in CASES {
        let outcome = case(&suite);
        let removed = suite.store.remove(folder, soon()).map_err(said);
        match outcome.and(removed) {
            Ok(()) => print_line(format_args!("ok {name}"))?,
            Err(what) => {
                failed += 1;
                print_line(format_args!("FAILED {name}: {what}"))?;
            }
        }
    }
    print_line(format_args!(
        "xenstore by {:?}: {} passed, {failed} failed",
        suite.provider,
        CASES.len() - failed
    ))?;
    if failed > 0 {
        return Err(Failure::new(
            format!("{failed} of {} cases failed", CASES.len()),
            "see the lines marked FAILED",
        ));
    }
    Ok(())
}

fn soon() -> Instant {
    Instant::now() + REQUEST_LIMIT
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// An error with the `wanted` and the actual value.
fn ensure(holds: bool, wanted: &str, came: impl std::fmt::Debug) -> Result<(), String> {
    if holds {
        return Ok(());
    }
    Err(format!("wanted {wanted}, got {came:?}"))
}

impl Suite {
    fn node(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), String> {
        self.store
            .write(&self.node(name), value, soon())
            .map_err(said)
    }

    fn read(&self, name: &str) -> Result<Box<str>, StoreError> {
        self.store.read(&self.node(name), soon())
    }
}

fn values(suite: &Suite) -> Result<(), String> {
    let long = "v".repeat(VALUE_MAX);
    for value in ["", "8", "two words\n", "Grüße", &long] {
        suite.write("value", value)?;
        let came = suite.read("value").map_err(said)?;
        ensure(*came == *value, value, came)?;
    }
    let longer = suite
        .store
        .write(&suite.node("value"), &format!("{long}v"), soon());
    ensure(
        matches!(longer, Err(StoreError::ValueTooLong { .. })),
        "a value that is too long",
        longer,
    )?;
    let came = suite.read("value").map_err(said)?;
    ensure(*came == *long, "the value of before", came)
}

fn absent(suite: &Suite) -> Result<(), String> {
    let read = suite.read("none");
    let wanted = "no such node";
    ensure(
        matches!(read, Err(StoreError::NotFound { .. })),
        wanted,
        read,
    )?;
    let node = suite.node("none");
    let present = suite.store.read_if_present(&node, soon()).map_err(said)?;
    ensure(present.is_none(), wanted, present)?;
    let list = suite.store.list(&node, soon());
    ensure(
        matches!(list, Err(StoreError::NotFound { .. })),
        wanted,
        list,
    )?;
    suite.store.remove(&node, soon()).map_err(said)
}

fn tree(suite: &Suite) -> Result<(), String> {
    suite.write("tree/a/deep", "1")?;
    suite.write("tree/b", "2")?;
    let list = |name: &str| suite.store.list(&suite.node(name), soon());
    let mut names = list("tree").map_err(said)?;
    names.sort();
    ensure(names == ["a".into(), "b".into()], "a and b", names)?;
    let none = list("tree/b").map_err(said)?;
    ensure(none.is_empty(), "no names", none)?;
    let remove = |name: &str| suite.store.remove(&suite.node(name), soon()).map_err(said);
    remove("tree/a")?;
    let gone = suite.read("tree/a/deep");
    ensure(
        matches!(gone, Err(StoreError::NotFound { .. })),
        "nothing below a removed node",
        gone,
    )?;
    let left = list("tree").map_err(said)?;
    ensure(left == ["b".into()], "b", left)?;
    remove("tree")
}

fn long_list(suite: &Suite) -> Result<(), String> {
    let mut wanted: Vec<Box<str>> = Vec::new();
    for n in 0..MANY_NODES {
        let name = format!("{n:04}-{}", "x".repeat(40));
        let node = suite.node(&format!("many/{name}"));
        match suite.store.write(&node, "", soon()) {
            Ok(()) => wanted.push(name.into()),
            // C xenstored counts the names of a guest's nodes towards the bytes of the node above.
            Err(StoreError::Quota { .. }) if n > 0 && !is_privileged(suite)? => break,
            Err(error) => return Err(said(error)),
        }
    }
    match suite.store.list(&suite.node("many"), soon()) {
        Ok(mut names) => {
            names.sort();
            ensure(names == wanted, "every name", names)?;
            print_line(format_args!("a list of {} names: whole", wanted.len()))
        }
        // xenstore-rs does not ask for parts, oxenstored does not offer any.
        Err(StoreError::Quota { code, .. }) if code == "E2BIG" && wanted.len() == MANY_NODES => {
            print_line(format_args!("a list of {} names: refused", wanted.len()))
        }
        Err(error) => return Err(said(error)),
    }
    .map_err(|failure| failure.what)
}

/// Whether this domain is privileged.
fn is_privileged(suite: &Suite) -> Result<bool, String> {
    // dom0 may have no such node.
    let domid = suite.store.read_if_present("domid", soon()).map_err(said)?;
    Ok(domid.is_none_or(|domid| &*domid == "0"))
}

fn denied(suite: &Suite) -> Result<(), String> {
    if is_privileged(suite)? {
        return Ok(());
    }
    let write = suite.store.write("/local/domain/0/name", "guest", soon());
    ensure(
        matches!(write, Err(StoreError::Denied { .. })),
        "an access denied",
        write,
    )
}

fn callers(suite: &Suite) -> Result<(), String> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                scope.spawn(move || {
                    let name = format!("caller-{caller}");
                    for round in 0..25 {
                        let value = format!("{caller} {round}");
                        suite.write(&name, &value)?;
                        let came = suite.read(&name).map_err(said)?;
                        ensure(*came == *value, &value, came)?;
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| {
            caller
                .join()
                .unwrap_or_else(|_| Err("a caller panicked".into()))
        })
    })
}

fn late(suite: &Suite) -> Result<(), String> {
    suite.write("early", "early")?;
    suite.write("next", "next")?;
    for microseconds in (0..20).map(|n| n * n * 10) {
        let deadline = Instant::now() + Duration::from_micros(microseconds);
        match suite.store.read(&suite.node("early"), deadline) {
            Ok(value) => ensure(&*value == "early", "early", value)?,
            Err(StoreError::TimedOut { .. }) => {}
            Err(error) => return Err(said(error)),
        }
        let value = suite.read("next").map_err(said)?;
        ensure(&*value == "next", "next", value)?;
    }
    Ok(())
}

fn watch(suite: &Suite) -> Result<(), String> {
    let mut watch = suite.provider.watch(&suite.node("watched")).map_err(said)?;
    let mut settle = |what: &str| {
        let first = watch.wait(Some(REQUEST_LIMIT));
        ensure(matches!(first, Waited::Fired), what, first)?;
        let mut next = watch.wait(Some(QUIET_TIME));
        while matches!(next, Waited::Fired) {
            next = watch.wait(Some(QUIET_TIME));
        }
        ensure(matches!(next, Waited::TimedOut), "no event", next)
    };
    settle("an event when the watch is set")?;
    suite.write("watched", "1")?;
    settle("an event at a write")?;
    suite.write("watched/below", "1")?;
    settle("an event at a write below")?;
    suite
        .store
        .remove(&suite.node("watched"), soon())
        .map_err(said)?;
    settle("an event at a removal")
}

fn unread_events(suite: &Suite) -> Result<(), String> {
    let node = suite.node("noisy");
    let mut watch = suite.provider.watch(&node).map_err(said)?;
    for n in 0..200 {
        suite.write("noisy", &n.to_string())?;
    }
    let value = suite.read("noisy").map_err(said)?;
    ensure(&*value == "199", "199", value)?;
    let event = watch.wait(Some(REQUEST_LIMIT));
    ensure(matches!(event, Waited::Fired), "an event", event)
}

fn release(suite: &Suite) -> Result<(), String> {
    // The result for others depends on the xenstored: a refusal, or a watch that never fires.
    if !is_privileged(suite)? {
        return Ok(());
    }
    let mut watch = suite.provider.watch("@releaseDomain").map_err(said)?;
    let event = watch.wait(Some(REQUEST_LIMIT));
    ensure(matches!(event, Waited::Fired), "an event", event)
}
