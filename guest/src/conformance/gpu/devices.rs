//! A session's devices: which there are, and which of them it uses.

use crate::attributes::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
use crate::client::Device;
use crate::conformance::{Ground, at, check, fails};

use super::{Outcome, end, is_cuda, same};

/// `CUDA_ERROR_INVALID_DEVICE`.
const INVALID_DEVICE: i32 = 101;

/// `CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE`.
const PRIMARY_CONTEXT_ACTIVE: i32 = 708;

pub(in crate::conformance) fn select(ground: &Ground<'_>) -> Outcome {
    let open = |ordinal| Device::with_ordinal(ground.connect()?, ordinal).map_err(at("select"));
    let first = open(0)?;
    let devices = first.info().devices;
    check(devices > 0, || "no device".to_owned())?;
    end(first)?;
    // Looking uses none of them.
    let mut client = ground.connect()?;
    let listed = client.devices().map_err(at("list"))?;
    check(listed.len() == devices as usize, || {
        format!("{} of {devices} devices", listed.len())
    })?;
    let last = Device::with_ordinal(client, devices - 1).map_err(at("select"))?;
    check(listed.last() == Some(last.info()), || {
        "the last is another".to_owned()
    })?;
    let major = last.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    check(major == Some(last.compute_capability().0), || {
        format!("{major:?}")
    })?;
    end(last)?;
    for ordinal in [devices, u32::MAX] {
        let error = fails(
            "a device too many",
            Device::with_ordinal(ground.connect()?, ordinal),
        )?;
        is_cuda(&error, INVALID_DEVICE)?;
    }
    for ordinal in 0..devices {
        let client = ground.connect()?;
        let other_lane = client.lane().map_err(at("a lane"))?;
        let device = Device::with_ordinal(client, ordinal).map_err(at("select"))?;
        let (free, total) = device.memory_info().map_err(at("memory info"))?;
        check(free <= total && total == device.total_memory(), || {
            format!("{free} of {total} bytes, of {}", device.total_memory())
        })?;
        let data = device.clone_htod(&[ordinal, 7]).map_err(at("copy"))?;
        // In use: no lane of the session can have another.
        let late = fails("a late choice", Device::with_ordinal(other_lane, 0))?;
        is_cuda(&late, PRIMARY_CONTEXT_ACTIVE)?;
        let back = device.clone_dtoh(&data).map_err(at("copy back"))?;
        same("after a late choice", &back, &[ordinal, 7])?;
        drop(data);
        end(device)?;
    }
    Ok(())
}
