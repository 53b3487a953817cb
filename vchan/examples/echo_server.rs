//! Sends every byte back to its client, one client after the other.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vchan::{Address, Channel};

const USAGE: &str = "\
Usage: echo_server ADDRESS [CLIENTS]

Sends back what each client sends, one client after the other; ends after CLIENTS of them if that
is given.

ADDRESS is local:PATH (a Unix socket), or xen:DOMID/PATH with the domain at the other end:
  echo_server local:/tmp/echo.sock       and   echo_client local:/tmp/echo.sock hello
  guest$ echo_server xen:0/data/echo     and   dom0# echo_client xen:7/data/echo hello";

/// Longest wait for a client, and for a client that is silent.
const CLIENT_LIMIT: Duration = Duration::from_secs(3600);

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
    let (address, clients) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return Ok(());
        }
        [address] => (address, u64::MAX),
        [address, clients] => (address, clients.parse()?),
        _ => return Err(USAGE.into()),
    };
    let address: Address = address.parse()?;
    for _ in 0..clients {
        // A channel has one client; the next one needs a new channel.
        let channel = address.serve(None, Instant::now() + CLIENT_LIMIT)?;
        println!("a client came to {}", channel.describe());
        match echo(channel) {
            Ok(bytes) => println!("it is gone after {bytes} bytes"),
            // One client's fault must not affect the others.
            Err(error) => println!("it failed: {error} ({})", error.advice()),
        }
    }
    Ok(())
}

fn echo(mut channel: Channel) -> vchan::Result<u64> {
    let mut buf = vec![0; 16 << 10];
    let mut total = 0;
    loop {
        let n = channel.read(&mut buf, Instant::now() + CLIENT_LIMIT)?;
        if n == 0 {
            return Ok(total); // the client has closed
        }
        channel.write_all(&buf[..n], Instant::now() + CLIENT_LIMIT)?;
        total += n as u64;
    }
}
