//! Every interleaving of two sides of a channel, as the memory model allows it.
//!
//! The code explored is the crate's own: the files below are compiled against loom's atomics, locks
//! and condition variables. Models stand in for three things only: the shared memory (`shm.rs`;
//! loom reports every unordered access to a ring byte), the doorbell (`bell.rs`, a flag that stays
//! up until acknowledged, as an eventfd or event channel does) and the sleep on it
//! (`backend_poll.rs`). A lost wake-up shows as a deadlock of the model.
//!
//! Each protocol has a twin that leaves one thing out ([`Without`]) and must fail; if it does not,
//! the model is too small to show anything. All executions are explored that have at most three
//! ([`MANY`]) or four ([`FEW`]) switches at a point where the running thread could have gone on.
#![allow(
    dead_code,
    unfulfilled_lint_expectations,
    unreachable_pub,
    unused_qualifications,
    reason = "of the crate's files each test uses a part"
)]

#[path = "backend.rs"]
mod backend;
#[path = "bell.rs"]
mod bell;
#[path = "../../src/channel/mod.rs"]
mod channel;
#[path = "../../src/error.rs"]
mod error;
mod notify;
#[path = "pair.rs"]
mod pair;
#[path = "reactor.rs"]
mod reactor;
#[path = "region.rs"]
mod region;
#[path = "region_scenario.rs"]
mod region_scenario;
#[path = "scenario.rs"]
mod scenario;
#[path = "sync.rs"]
mod sync;
#[path = "waiting.rs"]
mod waiting;
#[path = "wire.rs"]
mod wire;

use std::sync::{Mutex, PoisonError};

use backend::KERNEL_TELLS;
use pair::FORMAT;
use sync::{Without, leave_out};
use wire::layout::Format;

/// Switches explored where there are few things to interleave.
const FEW: usize = 4;
/// Switches explored where there are many.
const MANY: usize = 3;

/// Runs `scenario` on channels of this format in every interleaving, with `without` left out of
/// the code.
fn explore(
    format: Format,
    switches: usize,
    without: Without,
    scenario: impl Fn() + Sync + Send + 'static,
) {
    // Each execution makes stacks, and threads that map memory wait for each other in the kernel: two at once take longer
    // than one after the other, and twice the processor time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    FORMAT.set(format);
    KERNEL_TELLS.set(false);
    leave_out(without);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.max_branches = 10_000;
    model.check(move || {
        sync::atomic::start();
        scenario();
    });
}

/// The scenario holds in both formats, and fails in its twins for the given reason.
macro_rules! holds_but_not {
    ($scenario:ident, $switches:ident, $($twin:ident: $without:ident => $why:literal),* $(,)?) => {
        mod $scenario {
            holds_but_not!(@ classic Classic $scenario $switches $($twin $without $why)*);
            holds_but_not!(@ extended Extended $scenario $switches $($twin $without $why)*);
        }
    };
    (@ $name:ident $format:ident $scenario:ident $switches:ident
        $($twin:ident $without:ident $why:literal)*) => {
        mod $name {
            use crate::{Format, Without, explore, scenario};

            #[test]
            fn holds() {
                let switches = crate::$switches;
                explore(Format::$format, switches, Without::Nothing, scenario::$scenario);
            }
            $(
                #[test]
                #[should_panic(expected = $why)]
                fn $twin() {
                    let switches = crate::$switches;
                    explore(Format::$format, switches, Without::$without, scenario::$scenario);
                }
            )*
        }
    };
}

holds_but_not! {
    write_then_close, MANY,
    without_the_last_look_at_the_index: LookAfterClose => "bytes were lost at the close",
}
holds_but_not! {
    end_seen_awake, FEW,
    without_the_order_of_index_and_close: OrderOfClose => "bytes were lost at the close",
}
holds_but_not! {
    round_trip, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    read_two, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    hold_out_in_vain, FEW,
    without_the_fences: Fences => "deadlock",
}
holds_but_not! {
    hold_out_for_two, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    full_ring, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
}
holds_but_not! {
    poll_loop, FEW,
    without_the_fences: Fences => "deadlock",
    without_the_look_before_the_sleep: LookBeforeSleep => "deadlock",
    acknowledging_after_the_look: AcknowledgeFirst => "deadlock",
}
holds_but_not! {
    close_while_asleep, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    close_while_writing, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    domain_destroyed, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    both_close, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
holds_but_not! {
    split_halves, MANY,
    without_noticing_an_event_that_the_other_took: Generation => "deadlock",
    without_waking_the_follower: FollowerWakeUp => "deadlock",
}
holds_but_not! {
    leader_times_out, FEW,
    without_waking_the_follower: FollowerWakeUp => "deadlock",
}
holds_but_not! {
    own_half_closes, FEW,
    without_the_cancel: Cancel => "deadlock",
}
holds_but_not! {
    map_against_revoke, FEW,
    without_one_winner: OneWins => "Causality violation",
    without_the_order_of_access_and_release: OrderOfRelease => "Causality violation",
    without_the_second_look_at_the_ticket: SecondLook => "Causality violation",
    without_the_ring_when_it_lets_go: UnaskedRing => "deadlock",
}
holds_but_not! {
    late_ticket, FEW,
    without_the_second_look_at_the_ticket: SecondLook => "Used",
}
holds_but_not! {
    late_ticket_where_the_kernel_tells, FEW,
    without_the_second_look_at_the_ticket: SecondLook => "Used",
}
holds_but_not! {
    revoke_under_a_sleeper, FEW,
    without_the_unasked_ring: UnaskedRing => "deadlock",
}
