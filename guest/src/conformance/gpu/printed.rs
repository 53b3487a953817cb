//! Kernels' output.

use std::sync::{Arc, Mutex, PoisonError};

use vgpu_protocol::op::Features;

use crate::client::{Device, Module};
use crate::conformance::{Ground, at, check};
use crate::printed::Printed;

use super::{KERNELS, Outcome, config, device_word, end, kernel, open, open_with_kernels, same};

const PRINTING: &[u8] = include_bytes!("../printed.ptx");

/// Collected output of a session's kernels.
#[derive(Default)]
struct Heard {
    lines: Vec<Vec<u8>>,
    lost: u64,
}

type Hearing = (Device, Module, Arc<Mutex<Heard>>);

/// A device whose kernels print to the last of these; none where this mediator does not bring what they print.
fn open_to_hear(ground: &Ground<'_>) -> Result<Option<Hearing>, String> {
    let device = open(ground)?;
    if !device.with_client(|client| client.limits().features.contains(Features::PRINTED)) {
        end(device)?;
        return Ok(None);
    }
    let heard = Arc::<Mutex<Heard>>::default();
    let to = Arc::clone(&heard);
    device.on_printed(move |printed| {
        let mut heard = to.lock().unwrap_or_else(PoisonError::into_inner);
        match printed {
            Printed::Line(line) => heard.lines.push(line.to_vec()),
            Printed::Lost(bytes) => heard.lost += bytes,
        }
    });
    let module = device.load_module(PRINTING).map_err(at("load a module"))?;
    Ok(Some((device, module, heard)))
}

fn take_lines(heard: &Mutex<Heard>) -> Vec<String> {
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = std::mem::take(&mut heard.lines);
    let mut lines: Vec<String> = lines
        .iter()
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    // Threads print in any order.
    lines.sort();
    lines
}

pub(in crate::conformance) fn printed(ground: &Ground<'_>) -> Outcome {
    let Some((device, module, heard)) = open_to_hear(ground)? else {
        return Ok(());
    };
    let say = kernel(&module, "say")?;
    let wanted = ["thread 0 of 3", "thread 1 of 3", "thread 2 of 3"];
    let data = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    for way in ["synchronize", "copy"] {
        let launched = device.launch_builder(&say).launch(config(1, 3));
        launched.map_err(at("launch"))?;
        match way {
            "copy" => device.clone_dtoh(&data).map(drop),
            _ => device.synchronize().map(drop),
        }
        .map_err(at(way))?;
        same(way, &take_lines(&heard), &wanted.map(str::to_owned))?;
    }
    // No session gets the output of another's kernels.
    let Some((other, _module, others)) = open_to_hear(ground)? else {
        return Err("the next session does not offer it".to_owned());
    };
    let no_end = kernel(&module, "say_no_end")?;
    let launched = device.launch_builder(&no_end).launch(config(1, 1));
    launched.map_err(at("launch"))?;
    device.synchronize().map_err(at("synchronize"))?;
    other.synchronize().map_err(at("synchronize"))?;
    check(take_lines(&others).is_empty(), || {
        "another session's kernels were heard".to_owned()
    })?;
    end(other)?;
    end(device)?;
    same("at the end", &take_lines(&heard), &["no end".to_owned()])
}

/// The output of a stream's kernels is there when they end, whatever other streams do.
pub(in crate::conformance) fn printed_beside(ground: &Ground<'_>) -> Outcome {
    let Some((device, module, heard)) = open_to_hear(ground)? else {
        return Ok(());
    };
    let kernels = device.load_module(KERNELS).map_err(at("load a module"))?;
    let (say, spin) = (kernel(&module, "say")?, kernel(&kernels, "spin")?);
    let mut word = device.alloc_zeros::<u32>(1).map_err(at("zeros"))?;
    let (busy, prints) = (device.new_stream(), device.new_stream());
    let busy = busy.map_err(at("a stream"))?;
    let prints = prints.map_err(at("a stream"))?;
    // A driver may wait for the device where it launches a kernel for the first time.
    let launched = prints.launch_builder(&say).launch(config(1, 1));
    launched.map_err(at("launch"))?;
    device.synchronize().map_err(at("synchronize"))?;
    same("alone", &take_lines(&heard), &["thread 0 of 1".to_owned()])?;
    let launched = busy.launch_builder(&spin).arg(&word).launch(config(1, 1));
    launched.map_err(at("launch"))?;
    for k in 1..3 {
        let launched = prints.launch_builder(&say).launch(config(1, k));
        launched.map_err(at("launch"))?;
        prints.synchronize().map_err(at("synchronize"))?;
        let wanted: Vec<String> = (0..k).map(|t| format!("thread {t} of {k}")).collect();
        same("beside a kernel that runs", &take_lines(&heard), &wanted)?;
    }
    check(!busy.is_done().map_err(at("look"))?, || {
        "an endless kernel is done".to_owned()
    })?;
    prints.memset(&mut word, 1).map_err(at("its end"))?;
    device.synchronize().map_err(at("its end"))?;
    check(take_lines(&heard).is_empty(), || {
        "something was printed twice".to_owned()
    })?;
    end(device)
}

/// Lines of the flood: some times what is kept.
const FLOOD: u32 = 5000;

/// Bytes of each, with its end.
const FLOOD_LINE: u64 = 1009;

pub(in crate::conformance) fn printed_flood(ground: &Ground<'_>) -> Outcome {
    let Some((device, module, heard)) = open_to_hear(ground)? else {
        return Ok(());
    };
    let executor = device
        .with_client(|client| client.info())
        .map_err(at("info"))?
        .executor;
    let much = kernel(&module, "say_much")?;
    // Nothing of it is asked for until all is printed: launches are not answered.
    let launched = device
        .launch_builder(&much)
        .arg(&FLOOD)
        .launch(config(1, 1));
    launched.map_err(at("launch"))?;
    // Others go on.
    let (other, kernels) = open_with_kernels(ground)?;
    let word = device_word(&other)?;
    let work = kernel(&kernels, "work")?;
    let launched = other
        .launch_builder(&work)
        .arg(&word)
        .arg(&5u32)
        .launch(config(1, 1));
    launched.map_err(at("launch"))?;
    let found = other.clone_dtoh(&word).map_err(at("down"))?;
    same("beside a flood", &found, &[5])?;
    end(other)?;
    device.synchronize().map_err(at("synchronize"))?;
    let lines = take_lines(&heard);
    let lost = heard.lock().unwrap_or_else(PoisonError::into_inner).lost;
    let came: u64 = lines.iter().map(|line| line.len() as u64 + 1).sum();
    let all = u64::from(FLOOD) * FLOOD_LINE;
    // A GPU's driver keeps a number of bytes itself, and does not tell how many it has dropped.
    let counted = lost > 0 && lost + came == all;
    let silent = executor == "cuda" && lost + came <= all;
    check(came > 0 && (counted || silent), || {
        format!("{came} bytes came and {lost} are said to be lost, of {all} that were printed")
    })?;
    check(
        lines.iter().any(|line| line.ends_with(" 1 of many")),
        || "the newest line is lost".to_owned(),
    )?;
    end(device)
}
