//! How often a session asks the allocator for memory.

mod script;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use script::{Script, TERMS, play};
use vgpu_guest::{Client, Options};

/// Counts for each thread how often it asked.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ASKED.with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: all is done by the system's allocator; to count takes no memory, since the cell needs neither
// making nor dropping.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: what the caller promises is what this asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `requests` of a session that has warmed up; returns how often that asked for memory in this thread.
fn allocations(requests: impl Fn(&mut Client)) -> u64 {
    let (client, mediator) = play(
        4096,
        usize::MAX,
        &Options::default(),
        |mediator: &mut Script| {
            mediator.welcome(TERMS).expect("a Hello");
            let _ = mediator.serve();
        },
    );
    let mut client = client.expect("a session");
    for _ in 0..16 {
        requests(&mut client);
    }
    let before = ASKED.with(Cell::get);
    for _ in 0..16 {
        requests(&mut client);
    }
    let asked = ASKED.with(Cell::get) - before;
    client.goodbye().expect("a goodbye");
    mediator.join().expect("no panic of the mediator");
    asked
}

#[test]
fn a_short_request_takes_no_memory() {
    let asked = allocations(|client| {
        client.ping(&[7; 16]).expect("an answer");
    });
    assert_eq!(asked, 0);
}
