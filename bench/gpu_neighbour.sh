#!/bin/bash
# What a guest notices of another one whose kernel does not end, on a machine with an NVIDIA GPU and no Xen.
#
# usage: gpu_neighbour.sh [DIR]      DIR has vgpu-mediatord, vgpuctl and vgpu (default: target/release)
#   LAUNCHES=1000    launches with a wait each, whose times are taken
#   ROUNDS=3         the native processes and the guests take turns so often
#   EXECUTOR=cuda    (cpu tries the script, without the native processes)
#
# Natively: two processes, of which one has launched an endless kernel, so that the driver gives each slices of time.
# With the mediator: a client over tcp: with the same kernel, which ends only by its deadline, and one over local:. Printed for
# each round: median and 99th percentile of a launch with a wait, alone and beside the kernel. Needs nvcc. Exit status
# 1 if the median of the rounds' ratios of 99th percentiles, guest by native process, is above 1.2.
set -u
here=$(realpath "$(dirname "$0")")
bin=$(realpath "${1:-target/release}")
launches=${LAUNCHES:-1000} rounds=${ROUNDS:-3} executor=${EXECUTOR:-cuda}
for program in vgpu-mediatord vgpuctl vgpu; do
    [ -x "$bin/$program" ] || { echo "no $bin/$program"; exit 2; }
done
command -v python3 >/dev/null || { echo "python3 is needed"; exit 2; }
dir=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
neighbour= mediator=
end_neighbour() { if [ -n "$neighbour" ]; then kill -KILL "$neighbour" 2>/dev/null; wait "$neighbour" 2>/dev/null; fi; neighbour=; }
trap 'end_neighbour; kill $mediator 2>/dev/null; wait $mediator 2>/dev/null; rm -rf "$dir"' EXIT
status() { "$bin/vgpuctl" --control "$dir/control.sock" --json status; }
await() { # WHAT COMMAND...: until it succeeds
    local what=$1 tries; shift
    for tries in $(seq 600); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "$what"; cat "$dir/log"; exit 2
}
if [ "$executor" = cuda ]; then
    nvcc -O2 -o "$dir/native_gpu" "$here/native_gpu.cu" -lcuda || exit 2
    nvcc -O2 -o "$dir/native_busy" "$here/native_busy.cu" -lcuda || exit 2
fi
"$bin/vgpuctl" secret busy > "$dir/busy.secret" 2>/dev/null || exit 2
chmod 600 "$dir/busy.secret"
printf '[limits]\nkernel_timeout_s = 600\n' > "$dir/rules.toml"
"$bin/vgpu-mediatord" --executor "$executor" --listen "local:$dir/v.sock,tcp:127.0.0.1:$port" \
    --secrets "$dir/busy.secret" --config "$dir/rules.toml" --control "$dir/control.sock" > "$dir/log" 2>&1 &
mediator=$!
await "the mediator does not serve:" status
# Of both kinds, beside whatever runs: {"what": "launch_synchronize", "median": ..., "p99": ...}
native() { "$dir/native_gpu" "$launches" 1 65536 | grep '"launch_synchronize"'; }
guest() {
    "$bin/vgpu" --endpoint "local:$dir/v.sock" --json bench gpu --launches "$launches" --repeats 1 --copies 65536 |
        grep '"launch_synchronize"'
}
busy_natively() {
    "$dir/native_busy" "$here/busy.ptx" > "$dir/busy" & neighbour=$!
    await "the native kernel does not run:" grep -q runs "$dir/busy"
}
busy_guest() {
    "$bin/vgpu" --endpoint "tcp:127.0.0.1:$port" --secret-file "$dir/busy.secret" \
        run "$here/busy.ptx" --entry busy --grid 1 --block 1 --arg zero:4 --arg u32:0 > "$dir/busy" 2>&1 & neighbour=$!
    await "the guest's kernel does not run:" runs_in_turn
}
runs_in_turn() { # The guest over tcp: has had a turn, which does not end.
    status | python3 -c '
import json, sys
s = json.load(sys.stdin); s = s.get("status", s)
sys.exit(not any(g.get("turns", 0) > 0 and "busy" in g["guest"] for g in s["guests"]))'
}
for round in $(seq "$rounds"); do
    if [ "$executor" = cuda ]; then
        native > "$dir/native_alone.$round"
        busy_natively; native > "$dir/native_beside.$round"; end_neighbour
    fi
    guest > "$dir/guest_alone.$round"
    busy_guest; guest > "$dir/guest_beside.$round"
    kill -0 "$neighbour" 2>/dev/null || { echo "the guest's kernel ended early:"; cat "$dir/busy"; exit 2; }
    end_neighbour
    # Its worker goes with its kernel: the next round begins alone.
    alone() { status | python3 -c '
import json, sys
s = json.load(sys.stdin); s = s.get("status", s)
sys.exit(len(s["sessions"]) > 0)'; }
    await "the guest's session does not end:" alone
done
python3 - "$dir" "$rounds" "$executor" <<'PY'
import json, statistics, sys
directory, rounds, executor = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kinds = [k for k in ("native_alone", "native_beside", "guest_alone", "guest_beside") if executor == "cuda" or k.startswith("guest")]
ratios = []
for n in range(1, rounds + 1):
    told = {k: json.load(open(f"{directory}/{k}.{n}")) for k in kinds}
    print(f"round {n}: " + ", ".join(f"{k.replace('_', ' ')} {t['median']:.1f} us (p99 {t['p99']:.1f})" for k, t in told.items()))
    if executor == "cuda":
        ratios.append(told["guest_beside"]["p99"] / told["native_beside"]["p99"])
if ratios:
    middle = statistics.median(ratios)
    print(f"{'met   ' if middle <= 1.2 else 'missed'} p99 beside an endless kernel, of native: {middle:.3f}, limit <= 1.2")
    sys.exit(middle > 1.2)
PY
