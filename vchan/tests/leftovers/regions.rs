//! Descriptors and mappings of many regions, for each way in which they end, and afterwards.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vchan::local::{connect_on, serve_on};
use vchan::region::{Access, Ticket};
use vchan::{Channel, Error};
use vchan_testing::peer::send_raw;

use crate::liar::region::{PAGE, header, sealed, ticket};
use crate::liar::{self, ROLES, short, soon};
use crate::{alone, assert_nothing_left, settled};

fn pair() -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_on(one, 4096, soon()).unwrap());
    let client = connect_on(other, soon()).unwrap();
    (server.join().unwrap(), client)
}

fn round(how: usize) {
    let (mut server, mut client) = pair();
    let mut owned = server.create_region(70_000, Access::Both).unwrap();
    let unused = server.create_region(5000, Access::PeerReads).unwrap();
    let mapped = client.map_region(&owned.ticket(), soon()).unwrap();
    match how % 6 {
        0 => drop((client, server)),
        1 => drop((server, client)),
        2 => {
            drop(mapped);
            owned.revoke(soon()).unwrap();
            drop((owned, unused));
            drop(server.create_region(60_000, Access::Both).unwrap());
        }
        3 => {
            owned.revoke(Instant::now()).unwrap_err();
            drop(owned);
            assert_eq!(client.try_read(&mut [0]).unwrap(), None);
            assert!(mapped.read_at(0, &mut [0]).is_err());
        }
        4 => {
            client.close(soon()).unwrap();
            server.read(&mut [0], soon()).unwrap();
            let view = owned.view(0, 100).unwrap();
            drop(server);
            drop(view);
        }
        _ => {
            let view = mapped.view(0, 100).unwrap();
            server.close(soon()).unwrap();
            // The mapping ends when the client learns of it, the view's when the view ends.
            assert!(client.peer_gone().unwrap());
            drop(client);
            drop(view);
        }
    }
}

#[test]
fn two_hundred_channels_with_regions_leave_nothing_behind() {
    let _alone = alone();
    (0..6).for_each(round);
    let before = settled();
    (0..200).for_each(round);
    assert_nothing_left(before);
    // Those of an open channel, ended over and over, do not accumulate either.
    let (server, client) = pair();
    for round in 0..200 {
        let owned = server.create_region(50_000, Access::Both).unwrap();
        let _mapped = client.map_region(&owned.ticket(), soon()).unwrap();
        if round == 100 {
            drop(owned);
        }
    }
    drop((server, client));
    assert_nothing_left(before);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn offers_without_end_cost_a_bounded_number_of_descriptors() {
    let _alone = alone();
    let (victim, liar) = liar::pair(ROLES[0]);
    let wanted = ticket(5000);
    let other = Ticket { id: 2, ..wanted };
    let (header, data) = (header(&other), sealed(2 * PAGE));
    let before = open_descriptors();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let fds = [header.as_fd(), data.as_fd()];
            while !done.load(Ordering::Relaxed) {
                // Waits without result once the victim takes in nothing more.
                let _ = send_raw(&liar.stream, &other.encode(), &fds, short());
            }
        });
        let end = Instant::now() + Duration::from_millis(300);
        let missing = victim.map_region(&wanted.encode(), end);
        let open = open_descriptors();
        done.store(true, Ordering::Relaxed);
        assert!(matches!(missing, Err(Error::TimedOut(_))), "{missing:?}");
        let most = before + 2 * vchan::region::MOST_REGIONS + 200;
        assert!(open < most, "{open} open");
    });
}
