//! An echo between two Xen domains.
//!
//! In a guest: `xen_echo serve 0 data/echo`. In dom0, for guest 7: `xen_echo connect 7 data/echo`.

use std::time::{Duration, Instant};

use vchan::{Channel, DomId, xen};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["serve", peer, path] => serve(peer, path),
        ["connect", peer, path] => connect(peer, path),
        _ => {
            eprintln!("usage: xen_echo serve|connect DOMID PATH");
            std::process::exit(2);
        }
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}\n  {}", error.advice());
        std::process::exit(1);
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn peer(text: &str) -> vchan::Result<DomId> {
    text.parse().map_err(|error| {
        vchan::Error::setup(format!("{error}"), "give the number that `xl list` shows")
    })
}

fn serve(domain: &str, path: &str) -> vchan::Result<()> {
    let server = xen::Server::publish_default(peer(domain)?, path)?;
    println!("serving at {path}");
    let mut channel = server.accept(soon())?;
    let mut buf = [0; 64 << 10];
    loop {
        match channel.read(&mut buf, soon())? {
            0 => return channel.close(soon()),
            n => channel.write_all(&buf[..n], soon())?,
        }
    }
}

fn connect(domain: &str, path: &str) -> vchan::Result<()> {
    let mut channel: Channel = xen::connect(peer(domain)?, path, soon())?;
    let message = b"hello from the other domain";
    channel.write_all(message, soon())?;
    let mut answer = [0; 27];
    let mut filled = 0;
    while filled < answer.len() {
        match channel.read(&mut answer[filled..], soon())? {
            0 => break,
            n => filled += n,
        }
    }
    println!(
        "{}: {}",
        channel.describe(),
        String::from_utf8_lossy(&answer[..filled])
    );
    channel.close(soon())
}
