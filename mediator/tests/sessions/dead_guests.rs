//! A guest that dies with a long queue: what has not begun is not done, and its worker ends.

use vgpu_guest::{Device, Endpoint, LaunchConfig};

use crate::support::sockets::Sockets;
use crate::support::wait_until;

/// A kernel without an end, and one that ends at once.
const KERNELS: &[u8] = b".version 8.0
.target sm_50
.address_size 64
.visible .entry endless() {
L:  bra L;
}
.visible .entry nothing() {
    ret;
}
";

/// More than a device's queue takes, and less than a guest sends without an answer.
const LAUNCHES: u32 = 6000;

/// A device's queue, and what else a session asks.
const MOST_STARTED: u64 = 1100;

const ONE: LaunchConfig = LaunchConfig {
    grid_dim: (1, 1, 1),
    block_dim: (1, 1, 1),
    shared_mem_bytes: 0,
};

/// Of each session that has ended, how many requests were started.
fn requests(log: &str) -> Vec<u64> {
    let ended = log.lines().filter(|line| line.contains(" ended after "));
    let number = |line: &str| {
        let (before, _) = line.split_once(" requests")?;
        before.rsplit(' ').next()?.parse().ok()
    };
    ended.map(|line| number(line).expect(line)).collect()
}

#[test]
fn what_a_dead_guest_has_queued_is_not_done() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(directory.path());
    // Behind a kernel that reaches its deadline everything fails at once: then all of it would have been started.
    let files = ["--listen".to_owned(), sockets.file().to_string()];
    let files = files.each_ref().map(String::as_str);
    let (mediator, _) = sockets.start_configured("[limits]\nkernel_timeout_s = 3\n", &files);
    let endpoints: [Endpoint; 4] = [
        mediator.endpoint(),
        sockets.unix(),
        sockets.tcp(),
        sockets.file(),
    ];
    for (before, endpoint) in endpoints.iter().enumerate() {
        let device = Device::new(sockets.connect(endpoint).unwrap()).unwrap();
        let module = device.load_module(KERNELS).unwrap();
        let endless = module.load_function("endless").unwrap();
        let nothing = module.load_function("nothing").unwrap();
        device.launch_builder(&endless).launch(ONE).unwrap();
        for _ in 0..LAUNCHES {
            device.launch_builder(&nothing).launch(ONE).unwrap();
        }
        // Without a goodbye, as the kernel closes the connection of a process that was killed.
        drop((endless, nothing, module, device));
        // That of the directory stays.
        mediator.wait_for_workers(1);
        wait_until("its end is logged", || {
            requests(&mediator.log()).len() > before
        });
        let started = requests(&mediator.log())[before];
        assert!(
            started <= MOST_STARTED,
            "{endpoint}: {started} of {LAUNCHES}"
        );
    }
    mediator.stop();
}
