//! `vgpuctl secret NAME`: a new secret for a client over TCP.

use vgpu_cli::Failure;
use vgpu_mediator::print::{is_terminal, print, print_error};
use vgpu_socket_transport::Secret;

use crate::{Exit, print_json};

/// Standard output holds the line alone, so that it can be appended to a file.
pub(crate) fn run(name: &str, json: bool) -> Result<(), Exit> {
    // All that can be wrong here is the name: the system's random numbers do not fail once it runs.
    let secret = Secret::generate(name)
        .map_err(|error| Failure::usage(error.to_string(), error.advice()))?;
    let line = secret.to_line();
    if json {
        return Ok(print_json(&serde_json::json!({
            "name": secret.name(),
            "line": line.as_str(),
        }))?);
    }
    print(&format!("{}\n", line.as_str()))?;
    if is_terminal() {
        print_error("\n");
    }
    print_error(&format!(
        "Add this line to the mediator's file of secrets (`secrets` in mediatord.toml) and put it \
         alone\ninto a file of the client, named by --secret-file or VGPU_SECRET_FILE; chmod 600 \
         both. Everybody who\nhas it can connect as {}: send it by a way that nobody listens to. It \
         counts from the next\nconnection on.\n",
        secret.name()
    ));
    Ok(())
}
