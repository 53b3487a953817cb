//! The crate's own files, except the memory itself and the parts written only at the start.

#[path = "../../src/wire/extension.rs"]
pub(crate) mod extension;
/// The model of the control page is a part of that of the memory.
pub(crate) mod control_page {
    pub(crate) use super::shm::ControlPage;
}
#[path = "extension_page.rs"]
pub(crate) mod extension_page;
#[path = "../../src/wire/layout.rs"]
pub(crate) mod layout;
#[path = "../../src/wire/notify.rs"]
pub(crate) mod notify;
#[path = "../../src/wire/ring.rs"]
pub(crate) mod ring;
#[path = "../../src/wire/ring_end.rs"]
pub(crate) mod ring_end;
#[path = "shm.rs"]
pub(crate) mod shm;
