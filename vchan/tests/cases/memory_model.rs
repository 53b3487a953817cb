//! Cases 53 and 54, with real threads and our own other end. `tests/loom/` explores interleavings;
//! the lab tests against stock libxenvchan (`interop/`).

use std::thread;
use std::time::Duration;

use vchan::layout::{ORDER_MAX, ORDER_PAGE, Orders};
use vchan::{RingSizes, local};

use crate::liar::*;

/// Arms, looks again and sleeps, as often as two real processors manage: one lost wake-up would be
/// a time-out here.
#[test]
fn case_53_no_wake_up_is_lost() {
    for spin in [Duration::ZERO, Duration::from_micros(20)] {
        let (mut one, mut other) = honest(4096);
        one.set_spin(spin);
        other.set_spin(spin);
        let echoing = thread::spawn(move || {
            let mut buf = [0; 8];
            loop {
                match other.read(&mut buf, soon()).unwrap() {
                    0 => return,
                    n => other.write_all(&buf[..n], soon()).unwrap(),
                }
            }
        });
        for round in 0..5000u32 {
            one.write_all(&round.to_le_bytes(), soon()).unwrap();
            let mut back = [0; 4];
            read_exact(&mut one, &mut back);
            assert_eq!(back, round.to_le_bytes());
        }
        one.close(soon()).unwrap();
        echoing.join().unwrap();
    }
}

/// The bytes of `n`, repeated at random-looking places.
fn pattern(len: usize, n: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 31 + n * 7) % 251).unwrap())
        .collect()
}

/// Every pair of ring orders that a server can choose, both ways.
#[test]
fn case_54_every_pair_of_ring_orders() {
    let mut sizes = vec![1 << 10, 2 << 10];
    sizes.extend(
        (ORDER_PAGE..=ORDER_MAX)
            .step_by(2)
            .map(|order| 1usize << order),
    );
    for &client_to_server in &sizes {
        for &server_to_client in &sizes {
            let rings = RingSizes {
                server_to_client,
                client_to_server,
            };
            let orders = Orders::choose(rings).unwrap();
            let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
            let server = thread::spawn(move || local::serve_on(one, rings, soon()).unwrap());
            let mut client = local::connect_on(other, soon()).unwrap();
            let mut server = server.join().unwrap();
            assert_eq!(client.ring_sizes(), orders.sizes());
            assert_eq!(server.ring_sizes(), orders.sizes());
            // Full rings, twice, the second time across the end.
            for round in 0..2 {
                let there = pattern(orders.left_bytes() - 3 * round, round);
                let back = pattern(orders.right_bytes() - 3 * round, round + 2);
                client.write_all(&there, soon()).unwrap();
                server.write_all(&back, soon()).unwrap();
                let mut buf = vec![0; there.len()];
                read_exact(&mut server, &mut buf);
                assert!(buf == there, "{rings:?}: left, round {round}");
                let mut buf = vec![0; back.len()];
                read_exact(&mut client, &mut buf);
                assert!(buf == back, "{rings:?}: right, round {round}");
            }
        }
    }
}
