//! Cases 31 and 35 of `docs/threat-model.md`: a domain that is saved, and one that comes out of
//! the file under the same number with another uuid.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::GuestSpec;
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{Lacking, Place};

pub(crate) const CASES: &[Case] = &[Case::new("faults/case-31-35-restored", &[], |context| {
    let mut spec = GuestSpec::new("victim", Pv);
    spec.memory_mib = 256;
    context.create(&spec)?;
    let outcome = restored(context);
    let _ = context.host.guest_destroy("victim");
    outcome
})];

/// Saving and restoring write and read the guest's memory. More than the limits in the script.
const RESTORE_LIMIT: Duration = Duration::from_secs(420);

/// Script in dom0. Two clients are stopped while their guest goes and another gets its number: one
/// that waits for a server, and one whose pages the guest grants.
const DOM0: &str = r#"cd /tmp && rm -f idle && mkfifo idle || exit 1
domid=$(guest_domid victim)
until_() { # until_ COMMAND…: runs it until it succeeds
    n=0
    until "$@" >/dev/null 2>&1; do
        [ $n -lt 600 ] || { echo "never: $*" >&2; exit 1; }
        n=$((n + 1)); usleep 100000
    done
}
trap 'rm -f idle saved echo waits.log save.log restore.log; kill -KILL $waits $holds 2>/dev/null' EXIT
vchan connect --peer $domid --path data/none --timeout 600 --echo >waits.log 2>&1 & waits=$!
vchan connect --peer $domid --path data/t --pipe --linger 600 <idle >echo 2>/dev/null & holds=$!
exec 5>idle
echo whole >&5
until_ grep whole echo
# Its threads are listed anew each time.
until_ eval "grep -qs domain-watch /proc/$waits/task/*/comm"
kill -STOP $waits $holds
# Keeps the number (-D), which libxl otherwise gives to nobody for a minute.
export LIBXL_DOMID_REUSE_TIMEOUT=0
timeout 120 xl save -D $domid saved >save.log 2>&1 || { tail -n 3 save.log; exit 77; }
# The guest's configuration is text near the beginning of the file: another uuid of the same length.
old=$(head -c 2000 saved | tr '\0,' '.\n' | sed -n 's/.*"uuid": "\([-0-9a-f]*\)".*/\1/p')
at=$(head -c 2000 saved | tr '\0\n' '..' | awk -v uuid="$old" '{ print index($0, uuid) }')
[ ${#old} = 36 ] && [ "$at" -gt 0 ] || { echo "no uuid in the file"; exit 77; }
new=$(cat /proc/sys/kernel/random/uuid)
printf %s $new | dd of=saved bs=1 seek=$((at - 1)) conv=notrunc 2>/dev/null
timeout 60 xl restore saved >restore.log 2>&1 && echo "restored beside its predecessor"
grep -o 'creation fail: File exists' restore.log
kill -KILL $holds
until_ eval "! xl list $domid"
# For libxl a number given back in the same second is in use still, whatever the timeout.
sleep 2
timeout 120 xl restore saved >restore.log 2>&1 || { tail -n 5 restore.log; exit 1; }
rm saved
xl list -v victim | grep -q " $domid .* $new" && echo "another domain has the number"
kill -CONT $waits
wait $waits; echo "the one that waited: status $?"
cat waits.log
until_ xenstore-read /local/domain/$domid/console/tty
xenstore-read /local/domain/$domid/console/tty >/run/lab/victim.tty
guest_exec victim 'pidof vchan >/dev/null && echo "its server waits on"
    setsid vchan serve --peer 0 --path data/t --echo >/dev/null 2>&1 &'
echo "a new channel" | vchan connect --peer $domid --path data/t --pipe"#;

fn restored(context: &mut Context) -> Result<()> {
    context.succeed(
        Place::Guest("victim"),
        "setsid vchan serve --peer 0 --path data/t --echo >/dev/null 2>&1 &",
    )?;
    let output = context.host.exec(Place::Dom0, DOM0, RESTORE_LIMIT)?;
    if output.status == 77 {
        let why = format!("a guest that can be saved: {}", output.last_words());
        return Err(Lacking(why).into());
    }
    let text = output.text()?;
    for expected in [
        // As long as its pages are mapped, its number is not reused.
        "creation fail: File exists",
        "another domain has the number",
        "the one that waited: status 1",
        "was destroyed",
        // Nothing tells a restored guest that its channels are gone. Their processes are left
        // alone: Linux 6.1 hits a BUG in evtchn_release when an old port is closed.
        "its server waits on",
        "a new channel",
    ] {
        ensure!(text.contains(expected), "not `{expected}`: {text}");
    }
    ensure!(!text.contains("restored beside"), "{text}");
    Ok(())
}
