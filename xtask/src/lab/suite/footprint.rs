//! The resources that a case must leave unchanged, as Xen, xenstore and the kernels count them:
//! grants, event channels, nodes, processes, sockets.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use crate::lab::host::{Host, LIMIT, Place};

/// Counts of everything that could leak, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Footprint(BTreeMap<String, u64>);

/// Prints `NAME NUMBER` lines. Grants that are mapped are found in what Xen
/// itself lists for the debug key `g`, by the domain that granted them; event
/// channels by lsevtchn. Both are dom0's view of every domain.
const DOM0_SCRIPT: &str = r#"
xl debug-keys g
xl dmesg -c | awk '
    /gnttab_usage_print_all . key/ { split("", count) }
    /active/ { next }
    match($0, /grant-table for remote d[0-9]+/) {
        domain = substr($0, RSTART + 24, RLENGTH - 24); count[domain] += 0; next
    }
    /\[0x[0-9a-f]+\]/ { count[domain]++ }
    END { for (d in count) print "d" d ".granted-and-mapped", count[d] }'
xenstore-ls -f /local/domain | awk '
    { split($1, part, "/"); domain = part[4] }
    domain == "" { next }
    { nodes[domain] += 0 }
    # Not counted: the folder in which guests publish, and the hint of the mediator in it.
    part[5] == "data" && part[6] != "" && $1 !~ /\/data\/vgpu(\/mediator)?$/ { nodes[domain]++ }
    END {
        for (domain in nodes) {
            print "d" domain ".data-nodes", nodes[domain]
            channels = 0
            list = "lsevtchn " domain " 2>/dev/null"
            while ((list | getline line) > 0) channels++
            print "d" domain ".event-channels", channels
        }
    }'
"#;

/// For dom0 and guests alike. It starts one process: a footprint is taken often, and each costs some
/// 30 ms of emulated time.
const COMMON_SCRIPT: &str = r#"
set -- "$1" /run/vgpu/*.sock
place=$1 sockets=$(($# - 1))
[ -e "$2" ] || sockets=0
echo "${place}sockets $sockets"
awk -v place="$place" '
    BEGIN {
        names = split("vgpu-mediatord vgpu vchan vchan-testing vgpuctl", name, " ")
        list = "cat /proc/[0-9]*/comm 2>/dev/null"
        while ((list | getline comm) > 0) running[comm]++
        for (n = 1; n <= names; n++) print place name[n] "-processes", running[name[n]] + 0
    }'
"#;

impl Footprint {
    /// Counts in dom0 and in the named guests.
    pub(crate) fn take(host: &mut dyn Host, guests: &[String]) -> Result<Self> {
        let mut counts = BTreeMap::new();
        let mut add = |text: &str| {
            for line in text.lines() {
                if let Some((name, number)) = line.rsplit_once(' ')
                    && let Ok(number) = number.parse()
                {
                    counts.insert(name.to_owned(), number);
                }
            }
        };
        let script = format!("set -- dom0.\n{COMMON_SCRIPT}\n{DOM0_SCRIPT}");
        add(host.exec(Place::Dom0, &script, LIMIT)?.text()?);
        for guest in guests {
            let script = format!("set -- {guest}.\n{COMMON_SCRIPT}");
            add(host.exec(Place::Guest(guest), &script, LIMIT)?.text()?);
        }
        Ok(Footprint(counts))
    }

    /// Grants that are mapped at this moment, of all domains together.
    pub(crate) fn mapped_grants(&self) -> u64 {
        self.0
            .iter()
            .filter(|(name, _)| name.ends_with(".granted-and-mapped"))
            .map(|(_, n)| n)
            .sum()
    }

    /// A count by name; `None` if there is none of that name.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// The differences of `later` from this, more or less, as texts.
    pub(crate) fn differences(&self, later: &Footprint) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().chain(later.0.keys()).collect();
        names.sort();
        names.dedup();
        names
            .into_iter()
            .filter_map(|name| {
                let (before, after) = (self.get(name), later.get(name));
                (before != after).then(|| {
                    let text = |n: Option<u64>| n.map_or("none".to_owned(), |n| n.to_string());
                    format!("{name} {} → {}", text(before), text(after))
                })
            })
            .collect()
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, number) in self.0.iter().filter(|(_, number)| **number > 0) {
            writeln!(f, "    {name:<32} {number:>5}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_changed() {
        let footprint = |pairs: &[(&str, u64)]| {
            Footprint(pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect())
        };
        let before = footprint(&[("a", 1), ("b", 2)]);
        let after = footprint(&[("a", 1), ("b", 3), ("c", 1)]);
        assert_eq!(before.differences(&after), ["b 2 → 3", "c none → 1"]);
        assert!(before.differences(&before).is_empty());
    }
}
