//! The names of a session's files. Pure.
//!
//! `g-data-%016x` and `g-beat-%016x` are the guest's, `m-data-…` and `m-beat-…` the mediator's. No
//! name is used twice. `m-claim` says that a mediator has taken the session, `m-gone` that this
//! mediator is gone; `m-probe`, `g-probe` and `m-probed` are for the guest's test of its mount. A
//! leading dot marks unfinished files. All other names are ignored.

use super::segment::{Kind, Role};

/// Made by the mediator that takes a session; holds 16 digits that identify the mediator.
pub const CLAIM: &str = "m-claim";
/// Made by a later mediator, or for a worker that died: this session is over.
pub const GONE: &str = "m-gone";
/// Made by the mediator before its first beat.
pub const PROBE: &str = "m-probe";

/// Made by a guest that tests its mount: the mediator is to change [`PROBE`].
pub const ASK: &str = "g-probe";
/// Made by the mediator once it has changed [`PROBE`].
pub const CHANGED: &str = "m-probed";

/// The name of a segment.
pub fn segment(role: Role, kind: Kind, number: u64) -> String {
    format!("{}{number:016x}", prefix(role, kind))
}

/// The segment that `name` denotes, if it denotes one.
pub fn parse(name: &str) -> Option<(Role, Kind, u64)> {
    let all = [Role::Guest, Role::Mediator]
        .into_iter()
        .flat_map(|role| [(role, Kind::Data), (role, Kind::Beat)]);
    for (role, kind) in all {
        if let Some(digits) = name.strip_prefix(prefix(role, kind)) {
            let sound = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if digits.len() != 16 || !digits.bytes().all(sound) {
                return None;
            }
            let number = u64::from_str_radix(digits, 16).ok()?;
            return (number != 0).then_some((role, kind, number));
        }
    }
    None
}

fn prefix(role: Role, kind: Kind) -> &'static str {
    match (role, kind) {
        (Role::Guest, Kind::Data) => "g-data-",
        (Role::Guest, Kind::Beat) => "g-beat-",
        (Role::Mediator, Kind::Data) => "m-data-",
        (Role::Mediator, Kind::Beat) => "m-beat-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_names_are_nobodys() {
        let name = segment(Role::Guest, Kind::Data, 0x1f);
        assert_eq!(name, "g-data-000000000000001f");
        assert_eq!(parse(&name), Some((Role::Guest, Kind::Data, 0x1f)));
        for name in [
            "",
            "g-data-",
            "g-data-1f",
            "g-data-000000000000001F",
            "x-data-000000000000001f",
            "g-data-0000000000000000",
            "g-data-+00000000000001f",
            ".g-data-000000000000001f",
            CLAIM,
            GONE,
            PROBE,
            ASK,
            CHANGED,
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_its_meaning_and_nothing_else(text in "[gm]-(data|beat)-[0-9a-f]{15,17}") {
            if let Some((role, kind, number)) = parse(&text) {
                prop_assert_eq!(segment(role, kind, number), text);
            }
        }
    }
}
