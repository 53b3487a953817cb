//! The Xen backend: granted pages, event channels and a meeting point in xenstore.
//!
//! The **server** grants the control page and the rings to its peer and writes two keys into
//! xenstore; the **client** reads the keys, binds the event channel and maps the pages. On
//! XCP-ng a guest may talk to dom0 only and may map nothing, so there the guest is the server,
//! below its own `data/` node, and dom0 the client.
//!
//! * [`store`], [`keys`], [`path`]: xenstore, the keys, and the names of nodes.

pub mod keys;
pub mod path;
pub mod store;

use crate::error::{Error, PeerError};
use keys::KeyError;
use path::PathError;
use store::StoreError;

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Self::setup(error.to_string(), error.advice())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let advice = error.advice();
        match error {
            StoreError::Unreachable { source } => {
                Self::os_with_advice("cannot reach xenstore", source, advice)
            }
            error => Self::setup(error.to_string(), advice),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Store(error) => error.into(),
            error @ KeyError::Value { .. } => PeerError::Rendezvous(error.to_string()).into(),
        }
    }
}
