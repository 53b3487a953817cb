//! `vgpu info`.

use std::io;

use serde_json::json;
use vgpu_guest::{Client, InfoReply};

use crate::cli::Cli;
use crate::failure::Failure;
use crate::{output, session};

pub(crate) fn run(cli: &Cli) -> Result<(), Failure> {
    let mut client = session::open(cli)?;
    let info = client.info()?;
    let printed = print(cli, &client, &info);
    session::end(client);
    Ok(printed?)
}

fn print(cli: &Cli, client: &Client, info: &InfoReply) -> io::Result<()> {
    let endpoint = session::endpoint_name(client);
    let limits = *client.limits();
    let session = format!("{:#018x}", client.epoch());
    let left = session::left(client);
    if cli.json {
        return output::json(&json!({
            "executor": info.executor,
            "device": info.device,
            "total_memory": info.total_memory,
            "driver": info.driver,
            "reason": info.reason,
            "mediator": info.mediator,
            "endpoint": endpoint,
            "session": session,
            "limits": {
                "max_elements": limits.max_elements,
                "max_chunk_elements": limits.max_chunk_elements,
                "max_body": limits.max_body,
                "max_lanes": limits.max_lanes,
                "max_requests": limits.max_requests,
            },
            "left": left,
        }));
    }
    let driver = if info.driver.is_empty() {
        "none"
    } else {
        &info.driver
    };
    output::line(&format!(
        "executor  {} ({})\n\
         device    {}\n\
         memory    {}\n\
         driver    {driver}\n\
         mediator  {}\n\
         endpoint  {endpoint}\n\
         session   {session}\n\
         limits    {} elements a vector, {} a chunk",
        info.executor,
        info.reason,
        info.device,
        output::bytes(info.total_memory),
        info.mediator,
        limits.max_elements,
        limits.max_chunk_elements,
    ))
}
