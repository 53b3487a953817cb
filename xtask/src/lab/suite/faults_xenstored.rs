//! Case 42 of `docs/threat-model.md` with a real xenstored that is killed. Its socket stays and
//! refuses; dom0's kernel, asked through `/dev/xen/xenbus`, lets a watch wait for ever.
//!
//! The next xenstored does not know the domains of the last, so this ends its machine. A guest's
//! console ends with it: the guest reports its results over the channel that was open.

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::guest::Kind::Pv;
use crate::lab::host::{LIMIT, Lacking, Place};

pub(crate) const CASES: &[Case] = &[Case::ends_machine(
    "faults/case-42-xenstored-killed",
    &[Pv],
    killed,
)];

/// Script in the guest: answers over the channel `data/t`, first when all is well, then when
/// xenstored is dead. One program asks xenstored and gives up at its deadline, one is killed while
/// it waits. When that channel is closed the guest crashes, and another of its channels with it.
const GUEST: &str = r#"cat >/tmp/killed.sh <<'END'
vchan serve --peer 0 --path data/t --pipe </tmp/answer 2>/tmp/killed.log | {
    echo ready
    read -r word
    echo "guest has read $word"
    vchan connect --peer 0 --path data/none --timeout 600 --echo >/dev/null 2>&1 & waits=$!
    vchan serve --peer 0 --path data/u --timeout 3 --echo 2>&1
    echo "guest: status $?"
    kill -KILL $waits
    wait $waits
    echo "guest: killed, status $?"
} >/tmp/answer 2>&1
END
rm -f /tmp/answer
mkfifo /tmp/answer
vchan serve --peer 0 --path data/v --echo >/dev/null 2>&1 &
(setsid sh /tmp/killed.sh; echo c >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &"#;

/// Script in dom0; `DOMID` is the guest.
const DOM0: &str = r#"cd /tmp && rm -f word idle said && mkfifo word idle || exit 1
has() { # has TEXT FILE: waits until it is there
    n=0
    until grep -q "$1" "$2"; do
        [ $n -lt 600 ] || { echo "no '$1' in $2: $(cat "$2")" >&2; exit 1; }
        n=$((n + 1)); usleep 100000
    done
}
vchan connect --peer DOMID --path data/t --pipe <word >said 2>open.log & open=$!
exec 5>word
vchan connect --peer DOMID --path data/v --pipe --linger 600 <idle >/dev/null 2>lost.log & lost=$!
exec 6>idle
has ready said
vchan connect --peer DOMID --path data/waits --timeout 600 --echo >waits.log 2>&1 & waits=$!
n=0; until [ -e /proc/$waits/task ] && grep -qs domain-watch /proc/$waits/task/*/comm; do
    [ $n -lt 600 ] || exit 1; n=$((n + 1)); usleep 100000
done
sleep 1
xenstored=$(cat /run/xenstored.pid)
tr '\0' ' ' </proc/$xenstored/cmdline >xenstored.command
kill -KILL $xenstored || exit 1
wait $waits; echo "the one that waited: status $?"; grep -v '^\[' waits.log
vchan connect --peer DOMID --path data/none --timeout 600 --echo >new.log 2>&1
echo "a new one: status $?"; grep -v '^\[' new.log
# As where it was never started: the device is the only way, and is given up.
rm /run/xenstored/socket
vchan connect --peer DOMID --path data/none --timeout 3 --echo >none.log 2>&1
echo "without a socket: status $?"; grep -v '^\[' none.log
echo killed >&5
has 'guest: killed' said
exec 5>&-
wait $open; echo "the one that was open: status $?"
cat said
wait $lost; echo "the one that lost its guest: status $?"; grep -v '^\[' lost.log
echo "left: $(pidof vchan)""#;

/// Programs that need xenstored get an error, and end; those that have what they need go on.
fn killed(context: &mut Context) -> Result<()> {
    let ours = context
        .host
        .exec(Place::Dom0, "[ -e /lab/functions.sh ]", LIMIT)?;
    if !ours.success() {
        return Err(Lacking("a machine that may lose its xenstored".to_owned()).into());
    }
    let domid = context.host.guest_domid("pv")?;
    context.succeed(Place::Guest("pv"), GUEST)?;
    let script = DOM0.replace("DOMID", &domid.to_string());
    let output = context.host.exec(Place::Dom0, &script, LIMIT)?;
    let text = output.text()?;
    let says = |what: &str| text.lines().any(|line| line.contains(what));
    for expected in [
        "the one that waited: status 1",
        "a new one: status 1",
        "without a socket: status 1",
        "error: xenstore did not answer in time (node /local/domain/",
        "guest has read killed",
        // The guest reaches xenstored through its kernel, which reports nothing: there a deadline
        // ends the wait.
        "error: xenstore did not answer in time (node data/",
        "guest: status 1",
        "guest: killed, status 137",
        "the one that was open: status 0",
        // Nothing announces it: the domain was checked.
        "the one that lost its guest: status 1",
        "error: the other side's domain was destroyed",
    ] {
        ensure!(says(expected), "not `{expected}`: {text}");
    }
    // Long before their deadlines, which are beyond this script's limit.
    let told = text.matches("error: cannot reach xenstore").count();
    ensure!(told == 2, "{told} of 2 say why: {text}");
    ensure!(text.ends_with("left:"), "processes stay: {text}");

    let mediator = context.take_mediator()?;
    mediator.wait_for(context.host.as_mut(), "xenstored has ended", LIMIT)?;
    context.succeed(
        Place::Dom0,
        "setsid $(cat /tmp/xenstored.command) </dev/null >/dev/null 2>&1 &",
    )?;
    mediator.wait_for(context.host.as_mut(), "xenstored is back", LIMIT)?;
    // It answers, and ends properly, without xenstored.
    let script = "kill -KILL $(pidof xenstored oxenstored) && vgpuctl status";
    let status = context.succeed(Place::Dom0, script)?;
    ensure!(status.contains("xen:"), "{status}");
    context.end_mediator(&mediator)?;
    context
        .succeed(Place::Dom0, "! pidof vgpu-mediatord")
        .map(drop)
}
