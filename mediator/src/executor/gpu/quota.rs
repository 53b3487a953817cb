//! The device memory that a session may have, of what its guest may have in all its sessions.

use std::sync::Arc;

use crate::guest_memory::GuestMemory;

#[derive(Debug)]
pub(super) struct Quota {
    most: u64,
    used: u64,
    guest: Option<OfGuest>,
}

/// The limit of a guest over all its sessions, on whatever devices.
#[derive(Debug, Clone)]
pub(in crate::executor) struct OfGuest {
    pub(in crate::executor) sessions: Arc<GuestMemory>,
    pub(in crate::executor) most: u64,
}

impl OfGuest {
    fn left(&self, used: u64) -> Option<u64> {
        self.most
            .checked_sub(used)?
            .checked_sub(self.sessions.of_others())
    }
}

impl Quota {
    /// At most `most` bytes of its device, and what its guest may have.
    pub(super) fn new(most: u64, guest: Option<OfGuest>) -> Self {
        Self {
            most,
            used: 0,
            guest,
        }
    }

    /// Bytes that this session has.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that it may take now.
    pub(super) fn left(&self) -> u64 {
        self.difference().unwrap_or(0)
    }

    /// None: more is taken than there was.
    fn difference(&self) -> Option<u64> {
        let own = self.most.checked_sub(self.used)?;
        match &self.guest {
            Some(guest) => guest.left(self.used).map(|left| left.min(own)),
            None => Some(own),
        }
    }

    /// Takes `bytes`, if they are left.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        // What is too much in any case is not shown to the other sessions, which would be refused meanwhile.
        if bytes > self.left() {
            return false;
        }
        let before = self.used;
        self.take_all(bytes);
        let taken = !self.is_exceeded();
        if !taken {
            self.set(before);
        }
        taken
    }

    /// Takes `bytes` whether they are left or not: they are used already.
    pub(super) fn take_all(&mut self, bytes: u64) {
        self.set(self.used.saturating_add(bytes));
    }

    /// Whether more is taken than there was.
    pub(super) fn is_exceeded(&self) -> bool {
        self.difference().is_none()
    }

    /// Gives `bytes` back.
    pub(super) fn give(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used);
        self.set(self.used.saturating_sub(bytes));
    }

    fn set(&mut self, used: u64) {
        self.used = used;
        if let Some(guest) = &self.guest {
            guest.sessions.set(used);
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // All that it had is given back with the device.
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::Page;
    use std::os::fd::AsFd;

    #[test]
    fn what_one_session_has_the_others_have_not() {
        let mut page = Page::new().unwrap();
        let mut session = |id| {
            let word = page.word(id).unwrap();
            let fd = page.as_fd().try_clone_to_owned().unwrap();
            let sessions = Arc::new(GuestMemory::new(&fd, word).unwrap());
            // One device has less than the guest may have of both together.
            Quota::new(
                80,
                Some(OfGuest {
                    sessions,
                    most: 100,
                }),
            )
        };
        let (mut one, mut two) = (session(1), session(2));
        assert!(!one.take(81) && one.left() == 80);
        assert!(one.take(60) && !two.take(41) && two.take(40));
        assert_eq!((one.left(), two.left()), (0, 0));
        two.take_all(1);
        assert!(one.is_exceeded() && two.is_exceeded());
        two.give(11);
        assert_eq!((one.left(), two.used()), (10, 30));
        drop(one);
        assert!(two.take(50) && !two.take(u64::MAX));
        assert_eq!(two.used(), 80);
    }
}
