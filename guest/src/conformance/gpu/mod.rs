//! The conformance suite for devices: memory, copies, modules, launches, and their errors.

pub(super) mod cooperative;
pub(super) mod copies;
pub(super) mod devices;
pub(super) mod failures;
pub(super) mod graphs;
pub(super) mod kernels;
pub(super) mod limits;
pub(super) mod memory;
pub(super) mod pinned;
pub(super) mod printed;
pub(super) mod streams;

use std::time::Duration;

use vgpu_protocol::status::Status;

use crate::client::{Device, DeviceBuffer, Function, LaunchConfig, Module};
use crate::error::Error;

use super::{Ground, at, check, repeated};

const KERNELS: &[u8] = include_bytes!("../kernels.ptx");

/// More than the mediator takes at once of one copy, and no round number.
const LONG: usize = (5 << 20) + 12_347;

/// A kernel that never ends gets so long.
const DEADLINE: Duration = Duration::from_millis(500);

type Outcome = Result<(), String>;

fn open(ground: &Ground<'_>) -> Result<Device, String> {
    Device::new(ground.connect()?).map_err(at("device"))
}

pub(super) fn open_with_kernels(ground: &Ground<'_>) -> Result<(Device, Module), String> {
    let device = open(ground)?;
    let module = device.load_module(KERNELS).map_err(at("load a module"))?;
    Ok((device, module))
}

fn kernel(module: &Module, name: &str) -> Result<Function, String> {
    module.load_function(name).map_err(at(name))
}

fn config(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Bytes that tell their place.
fn pattern(n: usize, seed: u8) -> Vec<u8> {
    // A period of which no piece of a copy is a multiple, so that pieces in each other's places are noticed.
    let period: Vec<u8> = (0..65_537u64)
        .map(|i| ((i * 0x9e37_79b9) >> 13).to_le_bytes()[0] ^ seed)
        .collect();
    repeated(&period, n)
}

fn same<T: PartialEq>(what: &str, found: &[T], wanted: &[T]) -> Outcome {
    check(found.len() == wanted.len(), || {
        format!("{what}: {} elements, not {}", found.len(), wanted.len())
    })?;
    // Slices at once, which without optimisation is many times as fast as element by element.
    check(found == wanted, || {
        let wrong = found.iter().zip(wanted).position(|(a, b)| a != b);
        format!("{what}: element {wrong:?} is wrong")
    })
}

/// The error is this status.
fn is(error: &Error, status: impl Into<Status>) -> Outcome {
    let status = status.into();
    check(error.status() == Some(status), || {
        format!("{status} was due, and came: {error}")
    })
}

fn is_cuda(error: &Error, result: i32) -> Outcome {
    is(error, Status::Cuda(result))
}

pub(super) fn end(device: Device) -> Outcome {
    device.goodbye().map_err(at("goodbye"))
}

fn device_word(device: &Device) -> Result<DeviceBuffer<u32>, String> {
    device.alloc_zeros(1).map_err(at("zeros"))
}
