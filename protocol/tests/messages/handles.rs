//! Handles: a stale one never reaches another object, and a guest cannot make the table grow.

use proptest::prelude::*;
use vgpu_protocol::handle::{Handle, HandleError, HandleKind, HandleMinter, HandleTable};

fn handle(slot: u32, generation: u32) -> Handle {
    Handle::new(HandleKind::Stream, slot, generation).expect("a sound handle")
}

#[test]
fn a_closed_handle_names_nothing_even_when_its_slot_is_open_again() {
    let mut table = HandleTable::new(HandleKind::Stream, 4);
    table.open(handle(2, 1), "first").expect("a free slot");
    assert_eq!(table.close(handle(2, 1)), Ok("first"));
    table
        .open(handle(2, 2), "second")
        .expect("a new generation");
    assert_eq!(table.get_mut(handle(2, 1)), Err(HandleError::NotOpen));
    assert_eq!(table.close(handle(2, 1)), Err(HandleError::NotOpen));
    assert_eq!(table.get_mut(handle(2, 2)), Ok(&mut "second"));
    assert_eq!(table.len(), 1);
}

#[test]
fn what_a_table_refuses() {
    let mut table = HandleTable::new(HandleKind::Stream, 4);
    assert!(table.is_empty());
    assert_eq!(table.get_mut(handle(0, 1)), Err(HandleError::NotOpen));
    assert_eq!(
        table.open(handle(4, 1), 0),
        Err(HandleError::Slot {
            slot: 4,
            capacity: 4
        })
    );
    table.open(handle(0, 5), 0).expect("a free slot");
    assert_eq!(table.open(handle(0, 6), 0), Err(HandleError::InUse(0)));
    table.close(handle(0, 5)).expect("open");
    for given in [1, 5] {
        assert_eq!(
            table.open(handle(0, given), 0),
            Err(HandleError::Reused { given, next: 6 })
        );
    }
    table
        .open(handle(0, u32::MAX), 0)
        .expect("the last generation");
    table.close(handle(0, u32::MAX)).expect("open");
    assert!(table.open(handle(0, u32::MAX), 0).is_err());
}

#[test]
fn a_minter_never_repeats_itself_and_stops_at_its_capacity() {
    let mut minter = HandleMinter::new(HandleKind::Stream, 2);
    let first = minter.mint().expect("slot 0");
    let second = minter.mint().expect("slot 1");
    assert_ne!(first.slot(), second.slot());
    assert_eq!(minter.mint(), None);
    minter.release(first);
    minter.release(first);
    let third = minter.mint().expect("slot 0 again");
    assert_eq!((third.slot(), third.generation()), (first.slot(), 2));
    assert_eq!(minter.mint(), None);
    minter.release(first);
    assert_eq!(minter.mint(), None, "a stale handle must not free its slot");
}

proptest! {
    /// In any order of operations, the mediator's table accepts the handles that a guest minted.
    #[test]
    fn the_minter_and_the_table_agree(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
        let mut minter = HandleMinter::new(HandleKind::Stream, 8);
        let mut table = HandleTable::new(HandleKind::Stream, 8);
        let mut open: Vec<Handle> = Vec::new();
        for (opening, which) in steps {
            if opening {
                match minter.mint() {
                    Some(handle) => {
                        prop_assert_eq!(table.open(handle, handle.to_bits()), Ok(&mut handle.to_bits()));
                        open.push(handle);
                    }
                    None => prop_assert_eq!(open.len(), 8),
                }
            } else if !open.is_empty() {
                let handle = open.swap_remove(which.index(open.len()));
                prop_assert_eq!(table.close(handle), Ok(handle.to_bits()));
                minter.release(handle);
            }
            prop_assert_eq!(table.len() as usize, open.len());
        }
    }

    #[test]
    fn any_number_is_a_handle_or_refused(bits: u64) {
        if let Ok(handle) = Handle::from_bits(bits) {
            prop_assert_eq!(handle.to_bits(), bits);
        }
    }
}
