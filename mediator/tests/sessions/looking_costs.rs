//! Processor time that a guest costs dom0 by sending little, in many pieces.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use vchan::Channel;
use vgpu_guest::{Client, Endpoint};
use vgpu_transport::{Interest, Transport, TransportError};

use crate::support::{Mediator, WATCHDOG, options};

/// Between two bytes.
const PAUSE: Duration = Duration::from_micros(500);

/// How long bytes trickle.
const TIME: Duration = Duration::from_secs(4);

/// The worker's time on a processor, one of so much that passes. A worker that never sleeps uses all of
/// it, and on a machine where two others want the same processor still more than this.
const SHARE: u32 = 4;

/// Sends one byte at a time.
struct Trickle(Channel);

impl Transport for Trickle {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError> {
        Transport::try_read(&mut self.0, buf)
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError> {
        thread::sleep(PAUSE);
        Transport::try_write(&mut self.0, &buf[..buf.len().min(1)])
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError> {
        Transport::wait(&mut self.0, interest, deadline)
    }

    fn flush(&mut self, deadline: Instant) -> Result<(), TransportError> {
        Transport::flush(&mut self.0, deadline)
    }

    fn close(&mut self, deadline: Instant) -> Result<(), TransportError> {
        Transport::close(&mut self.0, deadline)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// The time that a process has been on a processor.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name may hold anything but ends with the last parenthesis; utime and stime are 14 and 15.
    let fields = stat.rsplit_once(')').expect("a name").1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    // USER_HZ, which is 100 on every architecture that Xen runs on.
    Duration::from_millis(10 * ticks)
}

#[test]
fn a_guest_that_trickles_bytes_keeps_no_processor_of_its_worker_busy() {
    let directory = tempfile::tempdir().unwrap();
    let mediator = Mediator::start(directory.path(), &[]);
    let Endpoint::Local(path) = mediator.endpoint() else {
        unreachable!("a path");
    };
    let soon = Instant::now() + WATCHDOG;
    let stream = vchan::local::connect_stream(&path, soon).unwrap();
    // Over this endpoint the guest has the server's role.
    let channel = vchan::local::serve_on(stream, 64 << 10, soon).unwrap();
    let mut client = Client::over(Box::new(Trickle(channel)), &options()).unwrap();
    let [worker] = mediator.workers()[..] else {
        panic!("one worker");
    };
    let (began, before) = (Instant::now(), processor_time(worker));
    let mut pings = 0;
    while began.elapsed() < TIME {
        client.ping(&[7; 64]).unwrap();
        pings += 1;
    }
    let (passed, used) = (began.elapsed(), processor_time(worker) - before);
    println!("{pings} pings in {passed:?}, of which the worker used {used:?}");
    assert!(pings > 0);
    assert!(
        used * SHARE < passed,
        "the worker was on a processor for {used:?} of {passed:?}"
    );
    client.goodbye().unwrap();
    mediator.stop();
}
