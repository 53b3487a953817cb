//! Sets of operations, for policies that allow only some of them.

use super::{Features, Op};

/// Numbers of operations below this can be in a set.
pub(super) const MOST: usize = 256;

const BITS: usize = u64::BITS as usize;

/// A set of operations that can be requested.
///
/// The operations of every session ([`Features::QUIET`] included) are in all sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpSet([u64; MOST / BITS]);

impl OpSet {
    /// Every operation.
    pub const ALL: Self = Self::those(true);

    /// Only the operations of every session.
    pub const NONE: Self = Self::those(false);

    const fn those(all: bool) -> Self {
        let mut set = Self([0; MOST / BITS]);
        let mut at = 0;
        while at < Op::REQUESTS.len() {
            let op = Op::REQUESTS[at];
            if all || is_every_sessions(op) {
                set = set.with(op);
            }
            at += 1;
        }
        set
    }

    /// Whether `op` is in it.
    pub const fn contains(self, op: Op) -> bool {
        let code = op.code() as usize;
        code < MOST && self.0[code / BITS] & 1 << (code % BITS) != 0
    }

    /// The set with `op`.
    #[must_use]
    pub const fn with(mut self, op: Op) -> Self {
        let code = op.code() as usize;
        assert!(code < MOST, "the set has no room for this operation");
        self.0[code / BITS] |= 1 << (code % BITS);
        self
    }

    /// The operations in both.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    /// The operations in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    /// The features of its operations, and those that every session has.
    pub fn features(self) -> Features {
        let ops = Op::REQUESTS.iter().filter(|op| self.contains(**op));
        ops.filter_map(|op| op.spec())
            .fold(Features::QUIET, |all, spec| all.with(spec.feature))
    }

    /// The operations of this name: one, as in `module-load`, or all of a family, as in `module`.
    pub fn named(name: &str) -> Option<Self> {
        let ops = choosable().filter(|op| of(*op).any(|own| own == name));
        ops.fold(None, |set, op| Some(set.unwrap_or(Self::NONE).with(op)))
    }

    /// The fewest names that make it up: of whole families and of single operations.
    pub fn names(self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for op in choosable().filter(|op| self.contains(*op)) {
            let [family, own] = [family(op), op.name()];
            let whole = Self::named(&family).is_some_and(|all| all.common(self) == all);
            let name = if whole { family } else { own };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The names of all families.
    pub fn families() -> Vec<String> {
        Self::ALL.names()
    }
}

/// Whether every session needs this operation.
const fn is_every_sessions(op: Op) -> bool {
    match op.spec() {
        Some(spec) => Features::QUIET.contains(spec.feature),
        None => false,
    }
}

/// Operations that may be left out.
fn choosable() -> impl Iterator<Item = Op> {
    let ops = Op::REQUESTS.iter().copied();
    ops.filter(|op| !is_every_sessions(*op))
}

/// The names that include `op`.
fn of(op: Op) -> impl Iterator<Item = String> {
    [family(op), op.name()].into_iter()
}

/// Its first word, which its family shares.
fn family(op: Op) -> String {
    let name = op.name();
    name.split('-').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_keeps_its_own_operations() {
        for op in [Op::Hello, Op::Goodbye, Op::Info, Op::Ping, Op::Fence] {
            assert!(OpSet::NONE.contains(op), "{op}");
        }
        assert!(!OpSet::NONE.contains(Op::Launch));
        assert!(Op::REQUESTS.iter().all(|op| OpSet::ALL.contains(*op)));
        assert_eq!(OpSet::NONE.features(), Features::QUIET);
        assert_eq!(OpSet::ALL.features(), Features::ALL);
    }

    #[test]
    fn every_request_has_its_place_and_no_other_frame_has() {
        for (place, op) in Op::REQUESTS.iter().enumerate() {
            assert_eq!(op.index(), Some(place));
        }
        assert_eq!([Op::Closing, Op::Data].map(Op::index), [None, None]);
    }

    #[test]
    fn operations_are_named_one_by_one_and_by_family() {
        let module = OpSet::named("module").unwrap();
        assert!(module.contains(Op::ModuleLoad) && module.contains(Op::ModuleUnload));
        assert!(!module.contains(Op::Launch));
        let load = OpSet::named("module-load").unwrap();
        assert!(load.contains(Op::ModuleLoad) && !load.contains(Op::ModuleUnload));
        for name in ["", "modul", "Module", "hello", "ping", "all"] {
            assert_eq!(OpSet::named(name), None, "{name}");
        }
        // None has a family's name for its own: it could not be meant alone.
        for op in choosable() {
            let alone = OpSet::NONE.with(op);
            let names: Vec<_> = alone
                .names()
                .iter()
                .map(|name| OpSet::named(name))
                .collect();
            assert_eq!(names, [Some(alone)], "{op}");
        }
        let launch = OpSet::named("launch").unwrap();
        assert_eq!(load.union(launch).names(), ["module-load", "launch"]);
        assert_eq!(module.names(), ["module"]);
        let all = OpSet::families().iter().fold(OpSet::NONE, |set, name| {
            set.union(OpSet::named(name).unwrap())
        });
        assert_eq!(all, OpSet::ALL);
    }
}
