//! The time that stores take to become visible, under the name of `src/settle.rs`: a publication
//! without a fence is over before a settling begins, or begins when that is over.

use crate::sync::{Without, is_left_out};

loom::lazy_static! {
    static ref STORE_BUFFER: loom::sync::Mutex<()> = loom::sync::Mutex::new(());
}

pub(crate) fn unfenced<R>(publication: impl FnOnce() -> R) -> R {
    let _in_flight = STORE_BUFFER.lock().unwrap();
    publication()
}

pub(crate) fn settle() {
    if !is_left_out(Without::Settling) {
        drop(STORE_BUFFER.lock().unwrap());
    }
}
