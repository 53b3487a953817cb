#!/bin/bash
# What a session costs beside the same work done natively, in one run, over local: on a machine with an NVIDIA GPU.
#
# usage: gpu_speed.sh [DIR]      DIR has vgpu-mediatord and vgpu (default: target/release)
#   LAUNCHES=1000 REPEATS=7   as of `vgpu bench gpu`
#   WARM=2 REST=1s            warm workers, and the rest before each session that is to have one
#   EXECUTOR=cuda             (cpu tries the script, without the native program)
#
# Needs nvcc for the native programs. Prints the lines of `vgpu bench gpu` with the native figures beside them, those of
# the vector adds, and each limit with how near the figure came. Exit status 1 if a limit is missed.
set -eu
here=$(realpath "$(dirname "$0")")
bin=$(realpath "${1:-target/release}")
launches=${LAUNCHES:-1000} repeats=${REPEATS:-7} executor=${EXECUTOR:-cuda}
warm=${WARM:-2} rest=${REST:-1s}
for program in vgpu-mediatord vgpuctl vgpu; do
    [ -x "$bin/$program" ] || { echo "no $bin/$program"; exit 2; }
done
command -v python3 >/dev/null || { echo "python3 is needed"; exit 2; }
dir=$(mktemp -d)
mediator=
end_mediator() { if [ -n "$mediator" ]; then kill "$mediator" 2>/dev/null; wait "$mediator" || true; fi; mediator=; }
trap 'end_mediator; rm -rf "$dir"' EXIT
start_mediator() { # WARM_WORKERS
    printf '[limits]\npinned_mib = 1536\n[worker]\nwarm_workers = %s\n' "$1" > "$dir/m.toml"
    rm -f "$dir/v.sock"
    "$bin/vgpu-mediatord" --config "$dir/m.toml" --listen "local:$dir/v.sock" --control "$dir/c.sock" \
        --executor "$executor" 2>>"$dir/log" &
    mediator=$!
    for _ in $(seq 600); do
        [ -S "$dir/v.sock" ] && return
        kill -0 "$mediator" 2>/dev/null || { cat "$dir/log"; exit 2; }
        sleep 0.1
    done
}
: > "$dir/native"
: > "$dir/native_adds"
if [ "$executor" = cuda ]; then
    nvcc -O2 -o "$dir/native_gpu" "$here/native_gpu.cu" -lcuda
    nvcc -O2 -o "$dir/native_adds_program" "$here/native_vector_add.cu"
fi
start_mediator 0
if [ "$executor" = cuda ]; then
    "$dir/native_gpu" "$launches" "$repeats" > "$dir/native"
    "$dir/native_adds_program" > "$dir/native_adds"
fi
vgpu() { "$bin/vgpu" --endpoint "local:$dir/v.sock" --json "$@"; }
vgpu bench gpu --launches "$launches" --repeats "$repeats" --native "$dir/native" | tee "$dir/ours"
vgpu bench --pings 1000 --repeats "$repeats" --sizes 1048576,67108864 | tee "$dir/adds"
# The worker of the session that runs: the only one.
worker='import json, sys; print(json.load(sys.stdin)["sessions"][0]["pid"])'
worker="'$bin/vgpuctl' --control '$dir/c.sock' --json status | python3 -c '$worker'"
vgpu bench gpu --sessions --rest "$rest" --kill "$worker" --repeats "$repeats" | tee "$dir/cold"
end_mediator
start_mediator "$warm"
vgpu bench gpu --sessions --rest "$rest" --kill "$worker" --repeats "$repeats" | tee "$dir/warm"
"$bin/vgpuctl" --control "$dir/c.sock" status | grep '^warm' || true
python3 - "$dir" "$launches" "$executor" <<'PY'
import json, sys
directory, launches, executor = sys.argv[1:]
lines = lambda name: [json.loads(line) for line in open(f"{directory}/{name}") if line.strip()]
ours = {line["what"]: line for line in lines("ours")}
warm, cold = ({line["what"]: line["median"] / 1e3 for line in lines(name)} for name in ("warm", "cold"))
adds = {line["elements"]: line["median_seconds"] for line in lines("adds") if "elements" in line}
native_adds = {(line["kind"], line["elements"]): line["seconds"] for line in lines("native_adds")}
missed = 0
def limit(name, value, bound, at_most=True):
    global missed
    met = value <= bound if at_most else value >= bound
    missed += not met
    print(f"{'met   ' if met else 'missed'} {name}: {value:.3f}, limit {'<=' if at_most else '>='} {bound}")
def not_compared(what):
    global missed
    # Without a GPU there is no native program.
    missed += executor == "cuda"
    print(f"       {what}: no native figure to compare with")
limit("processor time of a launch, us", ours["launch_processor"]["median"], 0.5)
for what, bound, at_most in [
    (f"launch_chain_{launches}", 1.0, True), ("launch_synchronize", 1.1, True), ("allocate_free", 1.0, True),
    ("session_open", 1.1, True), ("copy_up_268435456", 1.0, False), ("copy_down_268435456", 1.0, False),
    ("copy_up_16777216", 1.0, False), ("copy_down_16777216", 1.0, False),
    ("copy_up_268435456_pinned", 0.985, False), ("copy_down_268435456_pinned", 0.985, False),
    ("copy_up_16777216_pinned", 0.985, False), ("copy_down_16777216_pinned", 0.985, False),
    ("copies_up_268435456_pinned", 0.985, False), ("copies_down_268435456_pinned", 0.985, False),
    ("copies_up_16777216_pinned", 0.985, False), ("copies_down_16777216_pinned", 0.985, False)]:
    if "of_native" in ours.get(what, {}):
        limit(f"{what}, of native", ours[what]["of_native"], bound, at_most)
    else:
        not_compared(what)
for what in ("session_open", "session_reopen"):
    print(f"       {what}, ms: warm {warm[what]:.2f}, cold {cold[what]:.2f}")
limit("session_open with a warm worker, ms", warm["session_open"], 20)
limit("session_reopen after a kill with a warm worker, ms", warm["session_reopen"], 100)
for elements in (1048576, 67108864):
    native = native_adds.get(("native pageable", elements))
    if native:
        limit(f"vector add of {elements}, of native pageable", adds[elements] / native, 1.0)
    else:
        not_compared(f"vector add of {elements}")
    native = native_adds.get(("native pinned", elements))
    own = ours.get(f"vector_add_{elements}_pinned")
    if native and own and elements > 1048576:
        limit(f"vector add of {elements} from pinned memory, of native pinned", own["median"] / 1e6 / native, 1.05)
    elif native and own:
        print(f"       vector add of {elements} from pinned memory, of native pinned: {own['median'] / 1e6 / native:.3f}")
    else:
        not_compared(f"vector add of {elements} from pinned memory")
sys.exit(missed > 0)
PY
