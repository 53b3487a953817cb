//! Limits of stacks, heap and printed output.

use vgpu_protocol::status::ErrorCode;

use crate::client::{Device, Limit};
use crate::conformance::{Ground, at, check, fails};

use super::{Outcome, config, end, is, is_cuda, kernel, open};

const INVALID_VALUE: i32 = 1;

/// Says where on the heap it has so many bytes; 0 = there is no room.
const TAKE: &str = ".version 6.0
.target sm_50
.address_size 64
.extern .func (.param .b64 place) malloc(.param .b64 bytes);
.visible .entry take(.param .u64 bytes, .param .u64 out)
{
    .reg .b64 %n, %out, %place;
    ld.param.u64 %n, [bytes];
    ld.param.u64 %out, [out];
    cvta.to.global.u64 %out, %out;
    {
    .param .b64 wanted;
    .param .b64 place;
    st.param.b64 [wanted], %n;
    call.uni (place), malloc, (wanted);
    ld.param.b64 %place, [place];
    }
    st.global.u64 [%out], %place;
    ret;
}
";

/// The address that a kernel gets from `malloc` of so many bytes.
fn take(device: &Device, bytes: u64) -> Result<u64, String> {
    let module = device.load_module(TAKE.as_bytes()).map_err(at("load"))?;
    let take = kernel(&module, "take")?;
    let out = device.alloc_zeros::<u64>(1).map_err(at("zeros"))?;
    let launch = device.launch_builder(&take).arg(&bytes).arg(&out);
    launch.launch(config(1, 1)).map_err(at("take"))?;
    let place = device.clone_dtoh(&out).map_err(at("down"))?;
    Ok(place[0])
}

pub(in crate::conformance) fn limits(ground: &Ground<'_>) -> Outcome {
    const MIB: u64 = 1 << 20;
    let device = open(ground)?;
    let get = |limit| device.limit(limit).map_err(at("a limit"));
    let used = || {
        let statistics = device.statistics().map_err(at("statistics"))?;
        Ok::<u64, String>(statistics.memory)
    };
    let before = used()?;
    for (limit, more) in [
        (Limit::StackSize, 1024),
        (Limit::PrintfFifoSize, MIB),
        (Limit::MallocHeapSize, MIB),
    ] {
        let own = get(limit)?;
        let set = |bytes| device.set_limit(limit, bytes).map_err(at("set a limit"));
        set(own + more)?;
        let (now, counted) = (get(limit)?, used()? - before);
        check(now >= own + more && counted >= more, || {
            format!("{limit:?} of {own} and {more}: {now}, of which {counted} count")
        })?;
        // Again is the same, and back counts no more.
        set(own + more)?;
        check(used()? == before + counted, || {
            format!("{limit:?}: counted twice")
        })?;
        set(own)?;
        check(used()? == before, || format!("{limit:?}: not given back"))?;
        for bytes in [device.total_memory() + own + 1, u64::MAX] {
            let error = fails("more than there is", device.set_limit(limit, bytes))?;
            is(&error, ErrorCode::QuotaMemory)?;
        }
        check(get(limit)? >= own && used()? == before, || {
            format!("{limit:?}: what was refused has changed it")
        })?;
    }
    // A heap with room for more than the driver's own.
    let own = get(Limit::MallocHeapSize)?;
    let heap = device.set_limit(Limit::MallocHeapSize, 4 * own);
    heap.map_err(at("a larger heap"))?;
    let place = take(&device, 2 * own)?;
    check(place != 0, || "a larger heap has no more room".to_owned())?;
    let late = device.set_limit(Limit::MallocHeapSize, 8 * own);
    is_cuda(&fails("a heap that is in use", late)?, INVALID_VALUE)?;
    end(device)?;
    // Which is of that session alone.
    let device = open(ground)?;
    let place = take(&device, 2 * own)?;
    check(place == 0, || "as much without asking".to_owned())?;
    end(device)
}
