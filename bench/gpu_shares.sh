#!/bin/bash
# Shares of a GPU by weight, on a machine with an NVIDIA GPU and no Xen.
#
# usage: gpu_shares.sh [DIR]      DIR has vgpu-mediatord, vgpuctl and vgpu (default: target/release)
#   SECONDS_EACH=20  how long each case is measured
#   KERNEL_US=1000   about how long one kernel runs
#   EXECUTOR=cuda    (cpu to try the script itself)
#
# Guests are clients over tcp: on 127.0.0.1, each with a secret and a rule `weight = N`. Each runs
# `vgpu run --repeat` of a kernel of about 1 ms. Printed for each case: GPU time by the GPU's own events
# (usage.device_ns), time on the device by the broker's clock (contended_ns), turns, and how far each
# share is from its weight. Exit status 1 if one is off by more than 5 %.
set -u
bin=$(realpath "${1:-target/release}")
kernel=$(realpath "$(dirname "$0")/busy.ptx")
each=${SECONDS_EACH:-20}
kernel_us=${KERNEL_US:-1000}
executor=${EXECUTOR:-cuda}
for program in vgpu-mediatord vgpuctl vgpu; do
    [ -x "$bin/$program" ] || { echo "no $bin/$program"; exit 2; }
done
command -v python3 >/dev/null || { echo "python3 is needed"; exit 2; }
dir=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
    pids=()
}
trap 'stop; rm -rf "$dir"' EXIT

mediator() { # NAME:WEIGHT...
    : > "$dir/secrets"
    printf '[guests]\n' > "$dir/rules.toml"
    local guest
    for guest in "$@"; do
        local name=${guest%:*} weight=${guest#*:}
        rm -f "$dir/$name.secret"
        "$bin/vgpuctl" secret "$name" > "$dir/$name.secret" 2>/dev/null || return 1
        chmod 600 "$dir/$name.secret"
        cat "$dir/$name.secret" >> "$dir/secrets"
        printf '%s = { allow = true, weight = %s }\n' "$name" "$weight" >> "$dir/rules.toml"
    done
    chmod 600 "$dir/secrets"
    port=$((port + 1))
    "$bin/vgpu-mediatord" --executor "$executor" --listen "tcp:127.0.0.1:$port" \
        --secrets "$dir/secrets" --config "$dir/rules.toml" --control "$dir/control.sock" \
        > "$dir/log" 2>&1 &
    pids=($!)
    local tries
    for tries in $(seq 300); do
        status >/dev/null 2>&1 && return 0
        kill -0 "${pids[0]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "the mediator does not serve:"; cat "$dir/log"; return 1
}
status() { "$bin/vgpuctl" --control "$dir/control.sock" --json status; }
guest() { # NAME TIMES REPEAT
    "$bin/vgpu" --json --endpoint "tcp:127.0.0.1:$port" --secret-file "$dir/$1.secret" \
        run "$kernel" --entry busy --grid 1 --block 1 --repeat "$3" --arg zero:4 --arg "u32:$2"
}

mediator a:1 || exit 2
status | python3 -c '
import json, sys
s = json.load(sys.stdin); s = s.get("status", s)
e = s["executor"]; print("executor %s: %s" % (e["kind"], e["device"]))'
# Iterations for a kernel of KERNEL_US, from one of 1,000,000; the first launch loads the module.
guest a 1000000 3 > /dev/null || { echo "no kernel runs:"; cat "$dir/log"; exit 2; }
ns=$(guest a 1000000 10 | python3 -c 'import json, sys; print(json.load(sys.stdin)["device_ns"] // 10)')
times=$((1000000 * kernel_us * 1000 / ns))
[ "$times" -gt 0 ] || times=1
echo "kernel: $times iterations, about $kernel_us us"
start=$(date +%s%N)
guest a "$times" 2000 > "$dir/alone.json"
end=$(date +%s%N)
python3 - "$dir/alone.json" $((end - start)) <<'PY'
import json, sys
told = json.load(open(sys.argv[1]))
print("alone: 2000 kernels, %.3f s of GPU time in %.3f s with loading and copies" % (told["device_ns"] / 1e9, told["seconds"]))
PY
stop

failed=0
run_case() { # TITLE NAME:WEIGHT...
    local title=$1; shift
    mediator "$@" || { failed=1; return; }
    local guest
    for guest in "$@"; do
        guest "${guest%:*}" "$times" 4000000000 > "$dir/${guest%:*}.out" 2>&1 &
        pids+=($!)
    done
    # All have their sessions and have had turns.
    local tries
    for tries in $(seq 600); do
        status | python3 -c '
import json, sys
s = json.load(sys.stdin); s = s.get("status", s)
g = [g for g in s["guests"] if g.get("turns", 0) > 1]
sys.exit(len(g) < int(sys.argv[1]))' "$#" && break
        sleep 0.1
    done
    # What was queued by those who had the device before the others came is paid for by then.
    sleep "${SETTLE_S:-4}"
    status > "$dir/before.json"
    sleep "$each"
    status > "$dir/after.json"
    python3 - "$title" "$dir" "$each" "$@" <<'PY' || failed=1
import json, sys
title, directory, each, *guests = sys.argv[1:]
weights = {g.split(":")[0]: int(g.split(":")[1]) for g in guests}
def read(name):
    s = json.load(open(f"{directory}/{name}.json")); s = s.get("status", s)
    return {g["guest"].split()[-1]: g for g in s["guests"]}
before, after = read("before"), read("after")
def diff(name, get):
    return get(after[name]) - (get(before[name]) if name in before else 0)
gpu = {n: diff(n, lambda g: g["usage"]["device_ns"]) for n in weights}
held = {n: diff(n, lambda g: g["contended_ns"]) for n in weights}
turns = {n: diff(n, lambda g: g["turns"]) for n in weights}
all_gpu, all_held, all_weights = sum(gpu.values()), sum(held.values()), sum(weights.values())
print(f"\n{title}: {each} s, GPU busy with kernels {all_gpu / 1e9:.3f} s, shared {all_held / 1e9:.3f} s")
print("  guest weight   gpu_s  share   due  off%   held_s  off%   turns")
worst = 0.0
for n, w in weights.items():
    due = w / all_weights
    share, hshare = gpu[n] / max(all_gpu, 1), held[n] / max(all_held, 1)
    off, hoff = 100 * (share / due - 1), 100 * (hshare / due - 1)
    worst = max(worst, abs(off))
    print(f"  {n:5} {w:6} {gpu[n] / 1e9:7.3f} {share:6.3f} {due:5.3f} {off:+5.1f} {held[n] / 1e9:8.3f} {hoff:+5.1f} {turns[n]:7}")
# Of a worker's whole life, in whole percent: a second opinion on the events' times, no exact one.
s = json.load(open(f"{directory}/after.json")); s = s.get("status", s)
told = [x for x in s["sessions"] if x.get("nvml_busy_percent") is not None and x["age_s"] > 0]
for x in told:
    own = x["usage"]["device_ns"] / 1e7 / x["age_s"]
    print(f"  {x['guest'].split()[-1]}: kernels ran {own:.0f} % of its life by events, {x['nvml_busy_percent']} % by NVIDIA's accounting")
if not told:
    print("  NVIDIA's accounting is off (nvidia-smi -am 1), so nothing to compare the events with")
ok = worst <= 5.0
print(f"{'met   ' if ok else 'missed'} {title}: GPU time off the weights by {worst:.2f} %, limit <= 5")
sys.exit(not ok)
PY
    local name
    for guest in "$@"; do
        name=${guest%:*}
        [ -s "$dir/$name.out" ] && { echo "  $name ended early: $(head -c 300 "$dir/$name.out")"; failed=1; }
    done
    grep -i "warn\|error" "$dir/log" | head -5
    stop
}

run_case "two guests, 1:1" a:1 b:1
run_case "two guests, 1:3" a:1 b:3
run_case "ten guests, equal" g0:1 g1:1 g2:1 g3:1 g4:1 g5:1 g6:1 g7:1 g8:1 g9:1
exit $failed
