//! Requests that succeed.

use crate::client::Client;

use super::{Ground, at, check, goodbye};

pub(super) fn info(ground: &Ground<'_>) -> Result<(), String> {
    let mut client = ground.connect()?;
    let info = client.info().map_err(at("info"))?;
    let executor = info.executor.as_str();
    check(["cpu", "cuda", "relay"].contains(&executor), || {
        format!("the executor is called {executor:?}")
    })?;
    let mediator = info.mediator.as_str();
    check(mediator.starts_with("vgpu-mediatord "), || {
        format!("the mediator is called {mediator:?}")
    })?;
    let empty = [&info.device, &info.reason].map(|text| text.as_str().is_empty());
    check(empty == [false; 2], || {
        format!("no device or no reason: {info:?}")
    })?;
    check(client.endpoint() == Some(ground.endpoint), || {
        format!("{:?} is said to be in use", client.endpoint())
    })?;
    goodbye(client)
}

pub(super) fn pings(client: &mut Client) -> Result<(), String> {
    let around = |size: usize| [size - 1, size, size + 1];
    let powers = (4..12).map(|power| 1 << power).flat_map(around);
    for size in (0..=17).chain(powers).chain([4095, 4096]) {
        let payload: Vec<u8> = (0..=255).cycle().skip(size).take(size).collect();
        client
            .ping(&payload)
            .map_err(|error| format!("{size} bytes: {error}"))?;
    }
    Ok(())
}

pub(super) fn quiet(client: &mut Client) -> Result<(), String> {
    for round in 0..3 {
        for size in 0..100 {
            client
                .ping_quiet(&vec![7; size * 40])
                .map_err(at("quiet ping"))?;
        }
        let fence = client.fence().map_err(at("fence"))?;
        check(fence.is_empty(), || format!("round {round}: {fence:?}"))?;
    }
    client.ping(b"after fences").map_err(at("ping"))?;
    Ok(())
}
