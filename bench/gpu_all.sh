#!/bin/bash
# All limits of docs/benchmarks.md that need an NVIDIA GPU, in one run on a machine without Xen.
#
# usage: gpu_all.sh [DIR]      DIR has vgpu-mediatord, vgpuctl and vgpu (default: target/release)
#   The variables of gpu_speed.sh, gpu_shares.sh, gpu_neighbour.sh and gpu_devices.sh count.
#
# Runs those four, the last one where there are two GPUs, then prints every limit again with how near its figure came.
# Exit status 1 if one is missed, 2 if something could not be measured.
set -u
here=$(realpath "$(dirname "$0")")
bin=${1:-target/release}
all=$(mktemp)
trap 'rm -f "$all"' EXIT
worst=0
measure() { # SCRIPT
    echo "== $1"
    "$here/$1" "$bin" 2>&1 | tee -a "$all"
    local status=${PIPESTATUS[0]}
    [ "$status" -gt 1 ] && { echo "unmeasured: $1 ended with $status" | tee -a "$all"; status=2; }
    [ "$status" -gt "$worst" ] && worst=$status
}
measure gpu_speed.sh
measure gpu_shares.sh
measure gpu_neighbour.sh
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -ge 2 ]; then
    measure gpu_devices.sh
else
    echo "unmeasured: guests on GPUs of their own need two GPUs, and this machine has $gpus" | tee -a "$all"
fi
echo "== all limits"
grep -E '^(met|missed|unmeasured)' "$all"
exit "$worst"
