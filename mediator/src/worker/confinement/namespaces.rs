//! Namespaces of a worker's own: nothing of the network, no other process's shared memory, mounts that
//! nobody else sees.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::{Needs, tried};

/// Leaves the namespaces that all other processes are in. What it does not leave, and why, is the answer.
///
/// Root does so by its rights. An ordinary user first needs a user namespace, in which it keeps its
/// number and has the right to make the others; many systems forbid that.
pub(super) fn leave(needs: &Needs) -> Result<&'static str, String> {
    if !geteuid().is_root() {
        if needs.served.is_some() {
            return Err("in a user namespace it could not tell whose a file is".to_owned());
        }
        let (user, group) = (geteuid(), getegid());
        unshare(CloneFlags::CLONE_NEWUSER).map_err(tried("no user namespace"))?;
        fs::write("/proc/self/setgroups", "deny").map_err(tried("setgroups"))?;
        let map = |path, id: u32| fs::write(path, format!("{id} {id} 1"));
        map("/proc/self/uid_map", user.as_raw()).map_err(tried("uid_map"))?;
        map("/proc/self/gid_map", group.as_raw()).map_err(tried("gid_map"))?;
    }
    let mut all = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let note = match needs.relay {
        None => {
            all |= CloneFlags::CLONE_NEWNET;
            "none"
        }
        Some(_) => "kept, for the relay",
    };
    unshare(all).map_err(tried("no namespaces"))?;
    Ok(note)
}
