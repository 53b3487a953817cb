"""vgpu's suite for Xen hosts, one test for each of its cases.

Requirements:
- an XCP-ng host, 8.2 or later, and a running Linux VM on it; both let root log in over ssh with the keys of
  the machine that runs the tests
- in the VM a kernel with the modules xen-evtchn and xen-gntalloc (Debian's has them; RHEL's and its
  relatives' have no xen-gntalloc)
- on the machine that runs the tests a tree of vgpu, named by the variable VGPU_TREE, and Rust

What is changed: programs are copied to /opt/vgpu/bin of host and VM and stay there. VMs are neither created nor
ended; cases for which that is needed are skipped with that reason.

Variables:
- VGPU_TREE      the tree; not needed where this file lies in it
- VGPU_PACKAGES  the folder with packages from `cargo xtask dist`. Host and VM get their programs, which dom0
                 needs for its old glibc. Default: target/dist/out of the tree, if that is there
- VGPU_GUESTS    more guests of that host, ADDRESS,ADDRESS: some cases need two
- VGPU_FILTER    only cases whose name contains this, as in `cargo xtask lab test --filter`
- VGPU_XTASK     a command to run in place of `cargo xtask`
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

# The suite has limits of its own for every wait. This is for the case that one of them fails.
LIMIT_S = 4 * 3600


def tree():
    place = os.environ.get("VGPU_TREE")
    return Path(place) if place else Path(__file__).resolve().parents[3]


def xtask(*arguments, **options):
    """Runs cargo xtask lab. What it reports of its progress goes to the log that pytest captures."""
    command = shlex.split(os.environ.get("VGPU_XTASK", "cargo xtask"))
    return subprocess.run(
        [*command, "lab", *arguments], cwd=tree(), text=True, stdout=subprocess.PIPE, timeout=LIMIT_S, **options
    )


def chosen():
    wanted = os.environ.get("VGPU_FILTER")
    return ["--filter", wanted] if wanted else []


def cases():
    listed = xtask("test", "--list", *chosen())
    if listed.returncode != 0:
        raise RuntimeError("cannot list the cases: is VGPU_TREE a tree of vgpu?")
    return listed.stdout.split()


@pytest.fixture(scope="module")
def results(host, running_unix_vm):
    """What became of each case. All of them run at once: guests and mediators are shared between cases."""
    guests = [running_unix_vm.ip, *filter(None, os.environ.get("VGPU_GUESTS", "").split(","))]
    where = ["--host", f"root@{host.hostname_or_ip}"]
    for guest in guests:
        where += ["--guest", f"root@{guest}"]
    packages = os.environ.get("VGPU_PACKAGES") or tree() / "target/dist/out"
    if Path(packages).is_dir():
        where += ["--packages", str(packages)]
    run = xtask(*where, "test", "--json", *chosen(), stderr=subprocess.PIPE)
    print(run.stderr)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    found = {line["name"]: line for line in lines if "name" in line}
    if not found:
        pytest.fail(f"the suite did not run (status {run.returncode}): {run.stderr[-2000:]}")
    return found


@pytest.mark.small_vm
@pytest.mark.parametrize("case", cases())
def test_case(results, case):
    if case not in results:
        pytest.fail("the suite ended before this case", pytrace=False)
    result, reason = results[case]["result"], results[case]["reason"]
    if result == "skip":
        pytest.skip(reason)
    if result != "pass":
        pytest.fail(reason, pytrace=False)
