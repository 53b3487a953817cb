//! `--pipe`: standard input to the channel, the channel to standard output.
//!
//! The wire format knows no half-close, so somebody must decide when a transfer is over:
//! * when the peer closes, and everything it sent has been written out;
//! * when standard input, not empty, has been sent and read by the peer, the peer waits for more,
//!   and nothing has come from it for `--linger`. A peer that is merely slow holds bytes and does
//!   not wait for more, so its answer is not cut off.

use std::io::{Read, Write, stdin, stdout};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vchan::{Channel, Error, Reader, Writer};

use crate::failure::Failure;
use crate::stream::{BUFFER, progress, whenever};

/// How long the peer may take to read the rest before a close gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

/// For how many times `--linger` a silent peer is given the benefit of the doubt: one that looks
/// at the ring without ever asking to be woken cannot be told from one that is still at work.
const DOUBT: u32 = 30;

#[derive(Debug, Default)]
struct Shared {
    /// Bytes received so far.
    received: AtomicU64,
    /// All that was received has been written out, and more is waited for.
    all_written: AtomicBool,
    /// This side has decided to close.
    closing: AtomicBool,
    /// Why the sending thread ended early.
    failure: Mutex<Option<Failure>>,
}

pub(crate) fn run(channel: Channel, linger: Duration) -> Result<(), Failure> {
    let (reader, writer) = channel.split()?;
    let shared = Arc::new(Shared::default());
    let writer = Arc::new(Mutex::new(writer));
    let sender = {
        let (shared, writer) = (Arc::clone(&shared), Arc::clone(&writer));
        // Never joined unless it closes: it may be waiting for a terminal.
        thread::spawn(move || {
            if let Err(failure) = send(&shared, &writer, linger) {
                *shared
                    .failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(failure);
            }
        })
    };
    let received = receive(&shared, reader);
    if shared.closing.load(Ordering::Acquire) {
        let _ = sender.join();
    }
    let failure = shared
        .failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    received?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if !shared.closing.load(Ordering::Acquire) {
        // The peer closed first. Did it read what we had sent by then?
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.drain(Instant::now())?;
    }
    Ok(())
}

fn receive(shared: &Shared, mut reader: Reader) -> Result<(), Failure> {
    let progress = progress("received");
    let failed = |error| Failure::standard("output", &error);
    let mut output = stdout().lock();
    let mut buf = vec![0; BUFFER];
    let deadline = whenever();
    loop {
        shared.all_written.store(true, Ordering::Release);
        let n = match reader.read(&mut buf, deadline) {
            Ok(0) => break,
            Ok(n) => {
                shared.all_written.store(false, Ordering::Release);
                n
            }
            Err(Error::Closed) if shared.closing.load(Ordering::Acquire) => break,
            Err(error) => return Err(error.into()),
        };
        output.write_all(&buf[..n]).map_err(failed)?;
        output.flush().map_err(failed)?;
        let total = shared.received.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
        progress.set_position(total);
    }
    progress.finish_and_clear();
    Ok(())
}

fn send(shared: &Shared, writer: &Mutex<Writer>, linger: Duration) -> Result<(), Failure> {
    let lock = || writer.lock().unwrap_or_else(PoisonError::into_inner);
    let mut input = stdin().lock();
    let mut buf = vec![0; BUFFER];
    let deadline = whenever();
    let mut sent = false;
    loop {
        match input.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => {
                lock().write_all(&buf[..n], deadline)?;
                sent = true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::standard("input", &error)),
        }
    }
    if !sent {
        return Ok(());
    }
    lock().drain(deadline)?;
    let mut silent = 0;
    loop {
        let before = shared.received.load(Ordering::Relaxed);
        thread::sleep(linger);
        // Pairs with the stores in `receive`: the count is not behind what the flag says.
        if !shared.all_written.load(Ordering::Acquire)
            || shared.received.load(Ordering::Relaxed) != before
        {
            silent = 0;
            continue;
        }
        silent += 1;
        if lock().peer_awaits_data() || silent >= DOUBT {
            break;
        }
    }
    shared.closing.store(true, Ordering::Release);
    Ok(lock().close_now(Instant::now() + PATIENCE)?)
}
