#!/bin/bash
# Guests on GPUs of their own, on a machine with two NVIDIA GPUs and no Xen.
#
# usage: gpu_devices.sh [DIR]      DIR has vgpu-mediatord, vgpuctl and vgpu (default: target/release)
#   SECONDS_EACH=20  how long each case is measured
#   KERNEL_US=1000   about how long one kernel runs
#   GUESTS=4         guests of each GPU
#
# Guests are clients over tcp: on 127.0.0.1, each with a secret and a rule `devices = [N]`, half of them by the GPU's
# UUID. First each runs a kernel once, and what it sees is compared with the mediator's table, with nvidia-smi where that is
# there, and with the environment of the guest's worker. Then each runs `vgpu run --repeat` of a kernel of one thread:
# the guests of the first GPU alone, those of the second alone, and all at once. Printed for each GPU: how much of
# the time it ran kernels, by its own events (usage.device_ns), kernels a second, and the ratio of the rates at once and alone. Exit status 1 if
# a guest sees another GPU than its own, or if one of the rates at once is below 0.95 of that alone.
set -u
bin=$(realpath "${1:-target/release}")
kernel=$(realpath "$(dirname "$0")/busy.ptx")
each=${SECONDS_EACH:-20}
kernel_us=${KERNEL_US:-1000}
guests=${GUESTS:-4}
for program in vgpu-mediatord vgpuctl vgpu; do
    [ -x "$bin/$program" ] || { echo "no $bin/$program"; exit 2; }
done
command -v python3 >/dev/null || { echo "python3 is needed"; exit 2; }
dir=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
pids=()
stop() {
    for pid in "${pids[@]}"; do kill -KILL "$pid"; done 2>/dev/null
    for pid in "${pids[@]}"; do wait "$pid"; done 2>/dev/null
    pids=()
}
trap 'stop; rm -rf "$dir"' EXIT

status() { "$bin/vgpuctl" --control "$dir/control.sock" --json status; }
guest() { # NAME TIMES REPEAT [exec: in place of this shell, so that a signal for it reaches the program]
    ${4:-} "$bin/vgpu" --json --endpoint "tcp:127.0.0.1:$port" --secret-file "$dir/$1.secret" \
        run "$kernel" --entry busy --grid 1 --block 1 --repeat "$3" --arg zero:4 --arg "u32:$2"
}

# The guests of a GPU: a0 a1 ..., b0 b1 ...
first=(); second=()
: > "$dir/secrets"
for k in $(seq 0 $((guests - 1))); do first+=("a$k"); second+=("b$k"); done
for name in "${first[@]}" "${second[@]}"; do
    "$bin/vgpuctl" secret "$name" > "$dir/$name.secret" 2>/dev/null || exit 2
    chmod 600 "$dir/$name.secret"
    cat "$dir/$name.secret" >> "$dir/secrets"
done
chmod 600 "$dir/secrets"
printf '[guests]\n' > "$dir/rules.toml"
"$bin/vgpu-mediatord" --executor cuda --listen "tcp:127.0.0.1:$port" --secrets "$dir/secrets" \
    --config "$dir/rules.toml" --control "$dir/control.sock" > "$dir/log" 2>&1 &
mediator=$!
trap 'stop; kill $mediator 2>/dev/null; wait $mediator 2>/dev/null; rm -rf "$dir"' EXIT
for tries in $(seq 600); do
    status >/dev/null 2>&1 && break
    kill -0 "$mediator" 2>/dev/null || { echo "the mediator does not serve:"; cat "$dir/log"; exit 2; }
    sleep 0.1
done
status > "$dir/status.json" || { echo "the mediator does not answer:"; cat "$dir/log"; exit 2; }

# The mediator's table: index, UUID, place on the PCI bus. The rules name every second guest's GPU by UUID.
python3 - "$dir" "$guests" <<'PY' || exit 2
import json, sys
directory, guests = sys.argv[1], int(sys.argv[2])
devices = json.load(open(f"{directory}/status.json"))["executor"]["devices"]
for d in devices:
    print("GPU %(index)d: %(name)s %(uuid)s at %(pci)s" % d)
if len(devices) < 2:
    sys.exit("two GPUs are needed")
with open(f"{directory}/rules.toml", "w") as rules, open(f"{directory}/want", "w") as want:
    rules.write("[guests]\n")
    for letter, d in zip("ab", devices):
        for k in range(guests):
            name = '"%s"' % d["uuid"] if k % 2 else d["index"]
            rules.write("%s%d = { allow = true, devices = [%s] }\n" % (letter, k, name))
            want.write("%s%d %s %s\n" % (letter, k, d["uuid"], d["pci"]))
PY
"$bin/vgpuctl" --control "$dir/control.sock" reload || exit 2
failed=0
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index,uuid,pci.bus_id --format=csv,noheader > "$dir/smi" 2>/dev/null
    python3 - "$dir" <<'PY' || failed=1
import json, sys
directory = sys.argv[1]
table = json.load(open(f"{directory}/status.json"))["executor"]["devices"]
smi = {}
for line in open(f"{directory}/smi"):
    index, uuid, pci = [part.strip() for part in line.split(",")]
    smi[uuid] = (int(index), pci.lower()[-12:])
bad = [d for d in table if smi.get(d["uuid"]) != (d["index"], d["pci"])]
print("nvidia-smi counts the same GPUs in the same order" if not bad else f"nvidia-smi says otherwise: {smi}, not {bad}")
sys.exit(bool(bad))
PY
fi

# What each guest sees of itself.
while read -r name uuid pci; do
    seen=$(guest "$name" 1000 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["uuid"])')
    if [ "$seen" = "$uuid" ]; then echo "  $name: $seen at $pci"; else
        echo "  $name sees $seen, and should see $uuid"; failed=1
    fi
    "$bin/vgpu" --json --endpoint "tcp:127.0.0.1:$port" --secret-file "$dir/$name.secret" \
        run "$kernel" --entry busy --grid 1 --block 1 --device 1 --arg zero:4 --arg u32:1 > "$dir/other" 2>&1 &&
        { echo "  $name has a second GPU"; failed=1; }
    grep -q "(101)" "$dir/other" || { echo "  $name: $(head -c 300 "$dir/other")"; failed=1; }
done < "$dir/want"
[ "$failed" = 0 ] && echo "each guest sees one GPU, its own"

# Iterations for a kernel of KERNEL_US, from one of 1,000,000; the first launch loads the module.
guest a0 1000000 3 > /dev/null || { echo "no kernel runs:"; cat "$dir/log"; exit 2; }
ns=$(guest a0 1000000 10 | python3 -c 'import json, sys; print(json.load(sys.stdin)["device_ns"] // 10)')
times=$((1000000 * kernel_us * 1000 / ns))
[ "$times" -gt 0 ] || times=1
echo "kernel: $times iterations, about $kernel_us us"

look() { # FILE
    status | python3 -c '
import json, sys, time
s = json.load(sys.stdin); s["seconds"] = time.monotonic(); print(json.dumps(s))' > "$dir/$1"
}

# Runs these guests for so long; figures of each go to FILE.
measure() { # FILE NAME...
    local file=$1; shift
    local name tries
    for name in "$@"; do
        guest "$name" "$times" 4000000000 exec > "$dir/$name.out" 2>&1 &
        pids+=($!)
    done
    for tries in $(seq 600); do
        status | python3 -c '
import json, sys
s = json.load(sys.stdin)["sessions"]
sys.exit(sum(x["usage"]["device_ns"] > 0 for x in s) < int(sys.argv[1]))' "$#" && break
        sleep 0.1
    done
    sleep "${SETTLE_S:-4}"
    look "$file.before"
    sleep "$each"
    look "$file.after"
    [ "$file" = all ] && look_at_workers
    for name in "$@"; do
        [ -s "$dir/$name.out" ] && { echo "  $name ended early: $(head -c 300 "$dir/$name.out")"; failed=1; }
    done
    stop
    # The next case begins with none of these.
    for tries in $(seq 1200); do
        status | python3 -c 'import json, sys; sys.exit(len(json.load(sys.stdin)["sessions"]) > 0)' && return
        sleep 0.1
    done
    echo "sessions do not end"; failed=1
}

# While all run: by the table of sessions, and by the driver, where nvidia-smi knows processes of this namespace.
look_at_workers() {
    local apps=""
    command -v nvidia-smi >/dev/null &&
        apps=$(nvidia-smi --query-compute-apps=pid,gpu_uuid --format=csv,noheader 2>/dev/null)
    APPS=$apps python3 - "$dir" <<'PY' || failed=1
import json, os, sys
directory = sys.argv[1]
want = {l.split()[0]: l.split()[1] for l in open(f"{directory}/want")}
apps = {}
for line in os.environ["APPS"].splitlines():
    pid, uuid = [part.strip() for part in line.split(",")]
    apps.setdefault(int(pid), set()).add(uuid)
bad, by_driver = [], 0
sessions = json.load(open(f"{directory}/all.after"))["sessions"]
for s in sessions:
    name = s["guest_id"].split(":")[1]
    if s["devices"] != [want[name]]:
        bad.append(f"{name} has {s['devices']}")
    if s["pid"] in apps:
        by_driver += 1
        if apps[s["pid"]] != {want[name]}:
            bad.append(f"{name}'s worker is on {apps[s['pid']]}")
print(f"at once: {len(sessions)} sessions by vgpuctl, {by_driver} workers by nvidia-smi, on their GPUs" if not bad else "; ".join(bad))
sys.exit(bool(bad))
PY
}

measure first "${first[@]}"
measure second "${second[@]}"
measure all "${first[@]}" "${second[@]}"
python3 - "$dir" <<'PY' || failed=1
import json, sys
directory = sys.argv[1]
def had(case, letter):
    "GPU time in seconds and kernels a second of the guests of one GPU, between the two looks; and each guest's kernels."
    before, after = (json.load(open(f"{directory}/{case}.{w}")) for w in ("before", "after"))
    seconds = after["seconds"] - before["seconds"]
    busy, kernels = 0, {}
    then = {s["session"]: s["usage"] for s in before["sessions"]}
    for s in after["sessions"]:
        name = s["guest_id"].split(":")[1]
        if name[0] == letter and s["session"] in then:
            busy += s["usage"]["device_ns"] - then[s["session"]]["device_ns"]
            # Each launch is a request, and there are no others meanwhile.
            kernels[name] = s["usage"]["requests"] - then[s["session"]]["requests"]
    return busy / 1e9 / seconds, sum(kernels.values()) / seconds, kernels
worst = 9.0
print("\n  GPU  guests   alone: busy  kernels/s   at once: busy  kernels/s   ratio   each guest's kernels at once")
for letter, case in (("a", "first"), ("b", "second")):
    busy_alone, alone, _ = had(case, letter)
    busy, rate, kernels = had("all", letter)
    ratio = rate / max(alone, 1e-9)
    worst = min(worst, ratio)
    print("  %s    %6d  %11.1f %%  %9.1f   %11.1f %%  %9.1f   %.3f   %s" %
          (letter, len(kernels), 100 * busy_alone, alone, 100 * busy, rate, ratio,
           " ".join(str(kernels[name]) for name in sorted(kernels))))
ok = worst >= 0.95
print(f"{'met   ' if ok else 'missed'} guests on GPUs of their own: {worst:.3f} of the rate alone, limit >= 0.95")
sys.exit(not ok)
PY
grep -i "warn\|error" "$dir/log" | head -5
exit $failed
