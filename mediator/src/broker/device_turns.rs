//! Turns on all devices: each is shared by those who use it, and by nobody else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::peer::AccountKey;
use super::turns::{Shared, Turns, Words};
use crate::devices::DeviceKey;

/// The state of all devices. There are no more of them than a configuration and this machine name.
#[derive(Debug, Default)]
pub(super) struct DeviceTurns {
    devices: BTreeMap<DeviceKey, Turns>,
    /// The device of each session that has a turn or wants one.
    at: BTreeMap<u64, DeviceKey>,
}

impl DeviceTurns {
    /// Session `id` wants a turn on `device`, where it has none.
    pub(super) fn want(
        &mut self,
        id: u64,
        device: DeviceKey,
        (account, weight): (&AccountKey, u32),
        now: Instant,
    ) -> Words {
        // On one device at a time.
        let mut words = match self.at.get(&id) {
            Some(at) if *at != device => self.gone(id, now),
            _ => Words::new(),
        };
        self.at.insert(id, device);
        let turns = self.devices.entry(device).or_default();
        words.extend(turns.want(id, account, weight, now));
        words
    }

    /// Session `id` gives its turn back, and wants `another` on the same device or not.
    pub(super) fn over(&mut self, id: u64, another: bool, now: Instant) -> Words {
        if !another {
            return self.gone(id, now);
        }
        let turns = self.at.get(&id).and_then(|at| self.devices.get_mut(at));
        turns.map_or_else(Words::new, |turns| turns.over(id, true, now))
    }

    /// Session `id` has no turn any more, and wants none.
    pub(super) fn gone(&mut self, id: u64, now: Instant) -> Words {
        let at = self.at.remove(&id);
        let turns = at.and_then(|at| self.devices.get_mut(&at));
        turns.map_or_else(Words::new, |turns| turns.gone(id, now))
    }

    /// From now on session `id`, of the guest `account`, counts with this weight.
    pub(super) fn reweigh(&mut self, id: u64, account: &AccountKey, weight: u32, now: Instant) {
        for turns in self.devices.values_mut() {
            turns.reweigh(id, account, weight, now);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.devices.values().filter_map(Turns::deadline).min()
    }

    /// Lets others go on beside turns that are overdue.
    pub(super) fn expire(&mut self, now: Instant) -> Words {
        let devices = self.devices.values_mut();
        devices.flat_map(|turns| turns.expire(now)).collect()
    }

    /// The figures of a guest that has wanted a device, of all devices together.
    pub(super) fn shared(&self, account: &AccountKey) -> Option<Shared> {
        let each = self.devices.values();
        let each = each.filter_map(|turns| turns.shared(account));
        each.reduce(|sum, one| Shared {
            weight: sum.weight.max(one.weight),
            turns: sum.turns.saturating_add(one.turns),
            time: sum.time.checked_add(one.time).unwrap_or(Duration::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::turns::{QUANTUM, Word};
    use super::*;

    const DEVICES: [DeviceKey; 2] = [DeviceKey::Index(0), DeviceKey::Uuid([7; 16])];

    fn account(number: u32) -> AccountKey {
        AccountKey::Local(number)
    }

    #[test]
    fn guests_of_different_devices_do_not_wait_for_each_other() {
        let mut turns = DeviceTurns::default();
        let now = Instant::now();
        let mut want = |id: u64, device| {
            let number = id.try_into().unwrap();
            turns.want(id, device, (&account(number), 1), now)
        };
        // Each alone on its device.
        assert_eq!(want(1, DEVICES[0]), [(1, Word::Turn(None))]);
        assert_eq!(want(2, DEVICES[1]), [(2, Word::Turn(None))]);
        // The third shares with the first.
        assert_eq!(want(3, DEVICES[0]), [(1, Word::Yield(QUANTUM))]);
        let later = now + QUANTUM;
        let words = turns.over(1, true, later);
        assert_eq!(words, [(3, Word::Turn(Some(QUANTUM)))]);
        let time = |guest| turns.shared(&account(guest)).unwrap().time;
        assert_eq!(
            (time(1), time(2), time(3)),
            (QUANTUM, Duration::ZERO, Duration::ZERO)
        );
        // What the one of the other device does tells nobody anything.
        assert_eq!(turns.gone(2, later), []);
        assert_eq!(turns.gone(3, later), [(1, Word::Turn(None))]);
        assert_eq!(turns.deadline(), None);
    }

    #[test]
    fn a_session_is_at_one_device() {
        let mut turns = DeviceTurns::default();
        let now = Instant::now();
        for guest in [1, 2] {
            turns.want(guest.into(), DEVICES[0], (&account(guest), 1), now);
        }
        // The first goes to the other device, and has that at once; the second has this one.
        let words = turns.want(1, DEVICES[1], (&account(1), 1), now);
        assert_eq!(words, [(2, Word::Turn(None)), (1, Word::Turn(None))]);
        assert_eq!(turns.over(7, true, now), []);
        assert!(turns.deadline().is_none());
        assert_eq!(turns.shared(&account(1)).unwrap().turns, 2);
        assert_eq!(turns.shared(&account(9)), None);
    }

    #[test]
    fn an_overdue_turn_of_each_device_ends() {
        let mut turns = DeviceTurns::default();
        let now = Instant::now();
        for (id, device) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
            let number = id.try_into().unwrap();
            turns.want(id, DEVICES[device], (&account(number), 1), now);
        }
        let due = turns.deadline().unwrap();
        assert_eq!(turns.expire(now), []);
        let words = turns.expire(due);
        let ids: Vec<u64> = words.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [2, 4]);
    }
}
