//! Sends a file, or receives one, without a copy in this program: the kernel moves the bytes
//! between the file and the ring. Both sides know at the end that all of it arrived.

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vchan::{Address, Channel};

const USAGE: &str = "\
Usage: send_file ADDRESS FILE                sends FILE, as the vchan server
       send_file --receive ADDRESS FILE      receives into FILE, as the vchan client

ADDRESS is local:PATH (a Unix socket), or xen:DOMID/PATH with the domain at the other end:
  guest$ send_file xen:0/data/copy disk.img
  dom0#  send_file --receive xen:7/data/copy disk.img";

/// Bytes before the file: a magic number and its length, little-endian.
const HEADER: usize = 16;
const MAGIC: [u8; 8] = *b"sendfile";
/// The receiver's answer once it has written everything.
const DONE: [u8; 1] = *b"!";
/// Bytes moved at a time: the other side works on one part while the next is moved.
const PART: usize = 64 << 10;

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
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-h" | "--help"] => println!("{USAGE}"),
        ["--receive", address, file] => {
            let channel = address.parse::<Address>()?.connect(soon())?;
            let bytes = receive(channel, &File::create(file)?)?;
            println!("received {bytes} bytes");
        }
        [address, file] => {
            let file = File::open(file)?;
            let channel = address.parse::<Address>()?.serve(None, soon())?;
            let bytes = send(channel, &file)?;
            println!("sent {bytes} bytes");
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn send(mut channel: Channel, file: &File) -> Result<u64, Box<dyn Error>> {
    let bytes = file.metadata()?.len();
    channel.write_all(&MAGIC, soon())?;
    channel.write_all(&bytes.to_le_bytes(), soon())?;
    let mut left = bytes;
    while left > 0 {
        let part = PART.min(usize::try_from(left).unwrap_or(PART));
        let mut room = channel.reserve(1, soon())?.up_to(part);
        let n = room.read_from(file, soon())?;
        if n == 0 {
            return Err("the file became shorter meanwhile".into());
        }
        channel.commit(n)?;
        left -= n as u64;
    }
    let mut answer = [0; 1];
    match channel.read(&mut answer, soon())? {
        1 if answer == DONE => Ok(bytes),
        _ => Err("the receiver closed before it had everything".into()),
    }
}

fn receive(mut channel: Channel, file: &File) -> Result<u64, Box<dyn Error>> {
    // The peer may change the ring at any time: copy the header out, check the copy, use the copy.
    let header: [u8; HEADER] = channel
        .peek(HEADER, soon())?
        .array(0)
        .ok_or("the sender closed at once")?;
    channel.consume(HEADER)?;
    let (magic, bytes) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("the other side is no send_file".into());
    }
    let bytes = u64::from_le_bytes(bytes.try_into()?);
    let mut left = bytes;
    while left > 0 {
        let part = PART.min(usize::try_from(left).unwrap_or(PART));
        let view = channel.peek(1, soon())?.up_to(part);
        if view.is_empty() {
            return Err(format!("the sender closed {left} bytes before the end").into());
        }
        let n = view.write_to(file, soon())?;
        channel.consume(n)?;
        left -= n as u64;
    }
    file.sync_all()?;
    channel.write_all(&DONE, soon())?;
    channel.close(soon())?;
    Ok(bytes)
}
