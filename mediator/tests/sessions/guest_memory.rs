//! `memory_mib` is of a guest, however many sessions it has.

use nix::sys::signal::Signal;
use vgpu_guest::{Device, Endpoint, Error};
use vgpu_protocol::status::ErrorCode;

use crate::support::sockets::Sockets;
use crate::support::{Mediator, signal, wait_until};

const MIB: usize = 1 << 20;

fn device(sockets: &Sockets, endpoint: &Endpoint) -> Device {
    Device::new(sockets.connect(endpoint).unwrap()).unwrap()
}

fn is_refused(error: &Error) {
    assert_eq!(
        error.status(),
        Some(ErrorCode::QuotaMemory.into()),
        "{error}"
    );
}

fn memory_of(mediator: &Mediator, name: &str) -> (u64, u64) {
    let status = mediator.status();
    let guests = status["guests"].as_array().unwrap();
    let guest = guests.iter().find(|guest| guest["guest"] == name).unwrap();
    let of = |what: &str| guest[what].as_u64().unwrap();
    (of("memory"), of("memory_limit"))
}

fn sessions_share_a_limit(worker: &str) {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    let text = format!(
        "[limits]\nmemory_mib = 64\n[guests]\nother = {{ allow = true, memory_mib = 32 }}\n{worker}"
    );
    let (mediator, _) = sockets.start_configured(&text, &[]);
    let one = device(&sockets, &mediator.endpoint());
    let of_one = one.alloc_zeros::<u8>(40 * MIB).unwrap();
    let pid = mediator.status()["sessions"][0]["pid"].as_u64().unwrap();
    // Another session of the same user, by another way in.
    let two = device(&sockets, &sockets.unix());
    assert_eq!(two.memory_info().unwrap(), (24 << 20, 64 << 20));
    is_refused(&two.alloc::<u8>(25 * MIB).unwrap_err());
    let of_two = two.alloc::<u8>(20 * MIB).unwrap();
    is_refused(&one.alloc::<u8>(5 * MIB).unwrap_err());
    assert_eq!(one.memory_info().unwrap(), (4 << 20, 64 << 20));
    // What one gives back, the other may have.
    drop(of_two);
    two.synchronize().unwrap();
    drop(one.alloc::<u8>(24 * MIB).unwrap());
    one.synchronize().unwrap();
    let user = format!("local uid {}", nix::unistd::getuid());
    wait_until("the guest has its figures", || {
        memory_of(&mediator, &user) == (40 << 20, 64 << 20)
    });
    // Another guest has its own.
    let other = Device::new(
        vgpu_guest::Client::connect(&[sockets.tcp()], &sockets.options_of("other")).unwrap(),
    )
    .unwrap();
    assert_eq!(other.memory_info().unwrap(), (32 << 20, 32 << 20));
    drop(other.alloc::<u8>(32 * MIB).unwrap());

    // A worker that is killed says nothing, and what it had is free.
    signal(u32::try_from(pid).unwrap(), Signal::SIGKILL);
    wait_until("its memory is free", || {
        two.memory_info().unwrap().0 == 64 << 20
    });
    drop(two.alloc::<u8>(64 * MIB).unwrap());
    two.goodbye().unwrap();
    // And so does one that ends in good order.
    let three = device(&sockets, &mediator.endpoint());
    wait_until("its memory is free", || {
        three.memory_info().unwrap().0 == 64 << 20
    });
    drop((of_one, one));
    mediator.stop();
}

#[test]
fn sessions_of_a_guest_share_its_limit() {
    sessions_share_a_limit("");
}

#[test]
fn sessions_in_warm_workers_share_it_too() {
    sessions_share_a_limit("[worker]\nwarm_workers = 2\n");
}
