//! `throughput DIR`: the throughput of one session through files of several sizes in DIR, both ends
//! in this process. Prints one JSON object per line.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_file_transport::session::rules::SILENCE;
use vgpu_file_transport::session::{FileTransport, Settings, accept, connect};
use vgpu_transport::{Transport, TransportError};

const TIME: Duration = Duration::from_secs(2);
const ROUND_TRIPS: u32 = 500;

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn pair(directory: &Path) -> Result<(FileTransport, FileTransport), Box<dyn Error>> {
    let sessions = directory.join("sessions");
    fs::create_dir_all(&sessions)?;
    let guest = {
        let directory = directory.to_owned();
        thread::spawn(move || connect(&directory, &Settings::default(), deadline(), &|| false))
    };
    let name = loop {
        if let Some(entry) = fs::read_dir(&sessions)?.next() {
            break entry?.file_name().to_string_lossy().parse()?;
        }
        thread::sleep(Duration::from_millis(1));
    };
    let mediator = accept(directory, None, name, 1, SILENCE, deadline())?;
    let guest = guest.join().map_err(|_| "the guest's thread panicked")??;
    Ok((guest, mediator))
}

/// Reads until the end.
fn sink(mut transport: FileTransport) -> Result<(), TransportError> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match transport.try_read(&mut buffer)? {
            Some(0) => return transport.close(deadline()),
            Some(_) => {}
            None => transport.wait(vgpu_transport::Interest::Read, deadline())?,
        }
    }
}

fn echo(mut transport: FileTransport) -> Result<(), TransportError> {
    let mut buffer = [0; 16];
    loop {
        match transport.read_exact(&mut buffer, deadline()) {
            Err(TransportError::Closed) => return transport.close(deadline()),
            other => other?,
        }
        transport.write_all(&buffer, deadline())?;
        transport.flush(deadline())?;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("usage: throughput DIR")?
        .into();
    for file_bytes in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let (mut guest, mediator) = pair(&directory)?;
        let sink = thread::spawn(move || sink(mediator));
        let payload = vec![7; file_bytes];
        let (began, mut bytes) = (Instant::now(), 0u64);
        while began.elapsed() < TIME {
            guest.write_all(&payload, deadline())?;
            // Each is a file of its own, unless the thread is busy with the last one.
            guest.flush(deadline())?;
            bytes += file_bytes as u64;
        }
        guest.close(deadline())?;
        let mb_per_s = bytes as f64 / 1e6 / began.elapsed().as_secs_f64();
        sink.join().map_err(|_| "the sink panicked")??;
        println!(r#"{{"kind":"sink","message_bytes":{file_bytes},"mb_per_s":{mb_per_s:.0}}}"#);
    }
    let (mut guest, mediator) = pair(&directory)?;
    let echo = thread::spawn(move || echo(mediator));
    let began = Instant::now();
    for _ in 0..ROUND_TRIPS {
        guest.write_all(&[1; 16], deadline())?;
        guest.flush(deadline())?;
        guest.read_exact(&mut [0; 16], deadline())?;
    }
    let us = began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    guest.close(deadline())?;
    echo.join().map_err(|_| "the echo panicked")??;
    println!(r#"{{"kind":"echo","message_bytes":16,"us_per_round_trip":{us:.1}}}"#);
    Ok(())
}
