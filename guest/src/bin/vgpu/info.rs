//! `vgpu info`.

use serde_json::json;
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::{Client, CopyWay, InfoReply};

use crate::cli::Cli;
use crate::{output, session};

pub(crate) fn run(cli: &Cli) -> Result<(), Failure> {
    let mut client = session::open(cli)?;
    let info = client.info()?;
    let way = client.copy_way()?;
    let printed = print(cli, &client, &info, way);
    session::end(client)?;
    printed
}

fn print(cli: &Cli, client: &Client, info: &InfoReply, way: CopyWay) -> Result<(), Failure> {
    let (copies, how) = match way {
        CopyWay::PageLocked => (
            "page-locked",
            "by the device, in page-locked memory that both sides share",
        ),
        CopyWay::Shared => (
            "shared",
            "by the mediator: pinned buffers in memory that both sides share, others through the stream",
        ),
        _ => ("stream", "through the session's stream"),
    };
    let endpoint = session::endpoint_name(client);
    let limits = client.limits();
    let epoch = format!("{:#018x}", client.epoch());
    if cli.json {
        return print_object(&json!({
            "executor": info.executor.as_str(),
            "device": info.device.as_str(),
            "total_memory": info.total_memory,
            "driver": info.driver.as_str(),
            "reason": info.reason.as_str(),
            "mediator": info.mediator.as_str(),
            "copies": copies,
            "endpoint": endpoint,
            "epoch": epoch,
            "limits": {
                "max_lanes": limits.max_lanes,
                "max_requests": limits.max_requests,
                "max_handles": limits.max_handles,
                "initial_credit": limits.initial_credit,
            },
            "left": session::skipped(client),
        }));
    }
    let driver = match info.driver.as_str() {
        "" => "none",
        driver => driver,
    };
    print_line(format!(
        "executor  {} ({})\n\
         device    {}\n\
         memory    {}\n\
         driver    {driver}\n\
         mediator  {}\n\
         copies    {how}\n\
         endpoint  {endpoint}\n\
         epoch     {epoch}\n\
         limits    {} lanes, {} requests at once, {} objects of each kind",
        info.executor,
        info.reason,
        info.device,
        output::bytes(info.total_memory),
        info.mediator,
        limits.max_lanes,
        limits.max_requests,
        limits.max_handles,
    ))
}
