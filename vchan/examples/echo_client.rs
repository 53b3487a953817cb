//! Sends texts to an echo server and prints the answers.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vchan::Address;

const USAGE: &str = "\
Usage: echo_client ADDRESS TEXT...

Sends each TEXT to an echo_server and prints what comes back and how long that took.

ADDRESS is local:PATH (a Unix socket), or xen:DOMID/PATH with the domain at the other end:
  echo_server local:/tmp/echo.sock       and   echo_client local:/tmp/echo.sock hello
  guest$ echo_server xen:0/data/echo     and   dom0# echo_client xen:7/data/echo hello";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = arguments.collect();
    let (address, texts) = match &arguments[..] {
        [help] if help == "-h" || help == "--help" => {
            println!("{USAGE}");
            return Ok(());
        }
        [address, texts @ ..] if !texts.is_empty() => (address, texts),
        _ => return Err(USAGE.into()),
    };
    let soon = || Instant::now() + Duration::from_secs(10);
    // Waits for the server if it is not there yet.
    let mut channel = address.parse::<Address>()?.connect(soon())?;
    for text in texts {
        let start = Instant::now();
        channel.write_all(text.as_bytes(), soon())?;
        let mut answer = vec![0; text.len()];
        channel.read_exact(&mut answer, soon())?;
        let took = start.elapsed();
        if answer != text.as_bytes() {
            return Err(format!("'{text}' came back as {answer:?}").into());
        }
        println!("{text} ({took:?})");
    }
    Ok(channel.close(soon())?)
}
