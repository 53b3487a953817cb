#!/bin/bash
# What a session costs beside the same work done natively, in one run, over local: on a machine with an NVIDIA GPU.
#
# usage: gpu_speed.sh [DIR]      DIR has vgpu-mediatord and vgpu (default: target/release)
#   LAUNCHES=1000 REPEATS=7   as of `vgpu bench gpu`
#   EXECUTOR=cuda             (cpu tries the script, without the native program)
#
# Needs nvcc for the native programs. Prints the lines of `vgpu bench gpu` with the native figures beside them, those of
# the vector adds, and each limit with how near the figure came. Exit status 1 if a limit is missed.
set -eu
here=$(realpath "$(dirname "$0")")
bin=$(realpath "${1:-target/release}")
launches=${LAUNCHES:-1000} repeats=${REPEATS:-7} executor=${EXECUTOR:-cuda}
for program in vgpu-mediatord vgpu; do
    [ -x "$bin/$program" ] || { echo "no $bin/$program"; exit 2; }
done
command -v python3 >/dev/null || { echo "python3 is needed"; exit 2; }
dir=$(mktemp -d)
mediator=
trap 'if [ -n "$mediator" ]; then kill "$mediator" 2>/dev/null; wait "$mediator"; fi; rm -rf "$dir"' EXIT
: > "$dir/native"
: > "$dir/native_adds"
if [ "$executor" = cuda ]; then
    nvcc -O2 -o "$dir/native_gpu" "$here/native_gpu.cu" -lcuda
    nvcc -O2 -o "$dir/native_adds_program" "$here/native_vector_add.cu"
fi
printf '[limits]\npinned_mib = 1024\n' > "$dir/conf"
"$bin/vgpu-mediatord" --config "$dir/conf" --listen "local:$dir/v.sock" --control "$dir/c.sock" \
    --executor "$executor" 2>"$dir/log" &
mediator=$!
for _ in $(seq 600); do
    [ -S "$dir/v.sock" ] && break
    kill -0 "$mediator" 2>/dev/null || { cat "$dir/log"; exit 2; }
    sleep 0.1
done
if [ "$executor" = cuda ]; then
    "$dir/native_gpu" "$launches" "$repeats" > "$dir/native"
    "$dir/native_adds_program" > "$dir/native_adds"
fi
vgpu() { "$bin/vgpu" --endpoint "local:$dir/v.sock" --json "$@"; }
vgpu bench gpu --launches "$launches" --repeats "$repeats" --native "$dir/native" | tee "$dir/ours"
vgpu bench --pings 1000 --repeats "$repeats" --sizes 1048576,67108864 | tee "$dir/adds"
python3 - "$dir" "$launches" <<'PY'
import json, sys
directory, launches = sys.argv[1:]
lines = lambda name: [json.loads(line) for line in open(f"{directory}/{name}") if line.strip()]
ours = {line["what"]: line for line in lines("ours")}
adds = {line["elements"]: line["median_seconds"] for line in lines("adds") if "elements" in line}
native_adds = {(line["kind"], line["elements"]): line["seconds"] for line in lines("native_adds")}
missed = 0
def limit(name, value, bound, at_most=True):
    global missed
    met = value <= bound if at_most else value >= bound
    missed += not met
    print(f"{'met   ' if met else 'missed'} {name}: {value:.3f}, limit {'<=' if at_most else '>='} {bound}")
limit("processor time of a launch, us", ours["launch_processor"]["median"], 0.5)
for what, bound, at_most in [
    (f"launch_chain_{launches}", 1.0, True), ("launch_synchronize", 1.1, True), ("allocate_free", 1.0, True),
    ("session_open", 1.1, True), ("copy_up_268435456", 1.0, False), ("copy_down_268435456", 1.0, False),
    ("copy_up_16777216", 1.0, False), ("copy_down_16777216", 1.0, False),
    ("copy_up_268435456_pinned", 0.985, False), ("copy_down_268435456_pinned", 0.985, False),
    ("copy_up_16777216_pinned", 0.985, False), ("copy_down_16777216_pinned", 0.985, False)]:
    if "of_native" in ours.get(what, {}):
        limit(f"{what}, of native", ours[what]["of_native"], bound, at_most)
for elements in (1048576, 67108864):
    native = native_adds.get(("native pageable", elements))
    if native:
        limit(f"vector add of {elements}, of native pageable", adds[elements] / native, 1.0)
sys.exit(missed > 0)
PY
