//! The conformance suite for sessions over any endpoint.
//!
//! Each [`Case`] talks to a real mediator at one endpoint, which may be on another machine. Some open sessions of
//! their own; others run one after the other in one session, as a long program would. `vgpu conformance` runs them
//! from a command line; `mediator/tests/sessions/conformance.rs` runs them over every endpoint that needs no Xen, and the lab
//! runs them in a guest.

mod failures;
mod gpu;
mod lanes;
mod requests;
mod sessions;
mod shared;
mod vectors;

use std::time::{Duration, Instant};

use vgpu_transport::Endpoint;

use crate::client::{Client, Device, Module};
use crate::options::Options;
use shared::Shared;

/// The surroundings of a case.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The endpoint that is tried.
    pub endpoint: &'a Endpoint,
    /// Options of its sessions. The time limits are watchdogs: make them generous.
    pub options: &'a Options,
}

/// One thing to show.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// A name in words joined by underscores, unique.
    pub name: &'static str,
    run: Run,
}

/// The setting that a case runs in.
#[derive(Debug, Clone, Copy)]
enum Run {
    /// Sessions of its own.
    Alone(fn(&Ground<'_>) -> Result<(), String>),
    /// A session that cases before it have used.
    InSession(fn(&mut Client) -> Result<(), String>),
    /// The same, with its device and the kernels of the suite.
    OnDevice(fn(&Device, &Module) -> Result<(), String>),
}

/// All cases, in order.
pub const CASES: &[Case] = &[
    case("info_names_executor_and_mediator", requests::info),
    in_session("pings_of_all_sizes", requests::pings),
    in_session("quiet_requests_and_fences", requests::quiet),
    in_session("wrong_arguments_leave_the_session", failures::arguments),
    in_session("exchanges_of_all_sizes", vectors::exchanges),
    in_session("vector_adds_around_a_piece", vectors::around_a_piece),
    in_session(
        "vector_add_of_several_pieces_and_a_remainder",
        vectors::several_pieces,
    ),
    in_session("vector_add_of_1048576", vectors::million),
    in_session("sums_are_those_of_ieee_754", vectors::special_values),
    in_session("large_then_small", vectors::large_then_small),
    in_session("many_lanes", lanes::many),
    case("refused_requests", failures::refused),
    case(
        "quiet_failures_are_told_by_the_fence",
        failures::quiet_failures,
    ),
    case("a_ping_beside_a_vector_add", lanes::two_at_once),
    case("a_fence_waits_for_its_own_lane_alone", lanes::fences),
    case("two_sessions_at_once", sessions::two_at_once),
    case("epochs_differ", sessions::epochs),
    case("goodbye_ends_a_session", sessions::goodbye_ends),
    case("dropped_in_the_middle", sessions::dropped),
    case("interrupts_are_heard", failures::interrupts),
    case("deadlines_are_kept", failures::deadlines),
    case("gpu_devices_are_chosen_before_use", gpu::devices::select),
    on_device("gpu_tells_what_it_is", gpu::memory::info),
    on_device("gpu_memory_is_counted_and_given_back", gpu::memory::memory),
    on_device("gpu_copies_of_all_sizes_and_parts", gpu::copies::copies),
    on_device("gpu_rows_and_rectangles", gpu::copies::rows),
    on_device("gpu_fills", gpu::copies::fills),
    on_device("gpu_launches", gpu::kernels::launches),
    on_device("gpu_parameters_at_their_places", gpu::kernels::parameters),
    on_device("gpu_modules_and_their_variables", gpu::kernels::modules),
    on_device("gpu_many_launches_in_a_row", gpu::kernels::many_launches),
    on_device("gpu_cooperative_launches", gpu::cooperative::cooperative),
    on_device("gpu_attributes_of_launches", gpu::cooperative::attributes),
    on_device("gpu_occupancy_of_kernels", gpu::cooperative::occupancy),
    on_device("gpu_lanes_side_by_side", gpu::streams::lanes),
    on_device("gpu_streams_run_beside_each_other", gpu::streams::streams),
    on_device(
        "gpu_events_order_streams_and_tell_times",
        gpu::streams::events,
    ),
    on_device("gpu_graphs_are_launched_many_times", gpu::graphs::graphs),
    on_device("gpu_graphs_of_several_streams", gpu::graphs::streams),
    on_device("gpu_graphs_of_many_nodes", gpu::graphs::many_nodes),
    on_device("gpu_graphs_what_cannot_be_captured", gpu::graphs::refused),
    case(
        "gpu_memory_left_behind_is_not_seen",
        gpu::memory::left_behind,
    ),
    case(
        "gpu_statistics_are_those_of_the_session",
        gpu::memory::statistics,
    ),
    case("gpu_limits_of_stack_heap_and_output", gpu::limits::limits),
    case("gpu_memory_in_the_order_of_a_stream", gpu::memory::ordered),
    case("gpu_memory_pools", gpu::memory::pools),
    case("gpu_large_copies", gpu::pinned::large_copies),
    case("gpu_pinned_memory", gpu::pinned::pinned),
    case("gpu_kernels_reach_pinned_memory", gpu::pinned::by_kernels),
    case("gpu_pinned_memory_out_of_reach", gpu::pinned::out_of_reach),
    case("gpu_copies_behind_a_fault", gpu::pinned::behind_a_fault),
    case("gpu_copies_beside_a_capture", gpu::pinned::beside_a_capture),
    case(
        "gpu_failures_that_come_later_are_told",
        gpu::failures::late_failures,
    ),
    case(
        "gpu_failures_nobody_waited_for_are_told_at_the_end",
        gpu::failures::told_at_the_end,
    ),
    case("gpu_faults_cost_their_own_session", gpu::failures::faults),
    case(
        "gpu_endless_kernels_end_at_their_deadline",
        gpu::failures::endless,
    ),
    case(
        "gpu_long_work_comes_before_what_follows",
        gpu::kernels::long_work,
    ),
    case("gpu_kernels_are_cancelled", gpu::failures::cancelled),
    case(
        "gpu_a_cancel_overtakes",
        gpu::failures::cancelled_behind_others,
    ),
    case("gpu_kernels_print_lines", gpu::printed::printed),
    case(
        "gpu_kernels_print_beside_others",
        gpu::printed::printed_beside,
    ),
    case("gpu_printed_and_never_taken", gpu::printed::printed_flood),
    case("gpu_graphs_whose_parts_are_gone", gpu::graphs::gone),
    case("gpu_graphs_that_fault_or_do_not_end", gpu::graphs::faults),
];

const fn case(name: &'static str, run: fn(&Ground<'_>) -> Result<(), String>) -> Case {
    let run = Run::Alone(run);
    Case { name, run }
}

const fn in_session(name: &'static str, run: fn(&mut Client) -> Result<(), String>) -> Case {
    let run = Run::InSession(run);
    Case { name, run }
}

const fn on_device(name: &'static str, run: fn(&Device, &Module) -> Result<(), String>) -> Case {
    let run = Run::OnDevice(run);
    Case { name, run }
}

/// Result of a case.
#[derive(Debug)]
pub struct Outcome {
    /// Which case.
    pub case: &'static Case,
    /// The fault that was found, in one line.
    pub result: Result<(), String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Runs the cases whose name contains `only`, one after the other; each is reported when it is over.
pub fn run<'a>(ground: &'a Ground<'a>, only: &'a str) -> impl Iterator<Item = Outcome> + 'a {
    let wanted = CASES.iter().filter(move |case| case.name.contains(only));
    let mut wanted = wanted.peekable();
    let mut shared = Shared::default();
    std::iter::from_fn(move || {
        let case = wanted.next()?;
        let start = Instant::now();
        let mut result = shared.run(ground, case.run);
        let goes_on = wanted.peek().is_some_and(|next| next.run.shares(case.run));
        if result.is_ok() && !goes_on {
            result = shared.end();
        }
        Some(Outcome {
            case,
            result,
            elapsed: start.elapsed(),
        })
    })
}

impl Run {
    /// Whether both run in the same session.
    fn shares(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::InSession(_), Self::InSession(_)) | (Self::OnDevice(_), Self::OnDevice(_))
        )
    }
}

impl Ground<'_> {
    fn connect(&self) -> Result<Client, String> {
        self.connect_with(self.options).map_err(at("connect"))
    }

    fn connect_with(&self, options: &Options) -> crate::Result<Client> {
        Client::connect(std::slice::from_ref(self.endpoint), options)
    }
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// `n` elements, which are these over and over: copied, since computing each for itself takes a program without
/// optimisation longer than the session that is tried.
fn repeated<T: Copy>(period: &[T], n: usize) -> Vec<T> {
    let mut all = period.repeat(n.div_ceil(period.len()));
    all.truncate(n);
    all
}

/// Says at which step an error came.
fn at(step: &str) -> impl Fn(crate::Error) -> String + '_ {
    move |error| format!("{step}: {error}")
}

/// The error that `outcome` must be.
fn fails<T>(step: &str, outcome: crate::Result<T>) -> Result<crate::Error, String> {
    match outcome {
        Err(error) => Ok(error),
        Ok(_) => Err(format!("{step}: succeeded")),
    }
}

fn goodbye(client: Client) -> Result<(), String> {
    client.goodbye().map_err(at("goodbye"))
}

/// Shows that the session works: a ping and a small sum.
fn works(client: &mut Client, step: &str) -> Result<(), String> {
    client.ping(b"still there?").map_err(at(step))?;
    vectors::add(client, 33).map_err(|error| format!("{step}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }
}
