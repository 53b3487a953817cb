# Runs in the Debian in which the packages are installed.
set -eu
mkdir -p /run/vgpu
for program in vchan vgpu vgpu-mediatord vgpu-ptx vgpuctl; do
    "$program" --version | grep -qF " ($(cat /session/commit))"
done
for way in unix local; do
    endpoint=$way:/run/vgpu/guests-$way.sock
    vgpu-mediatord --listen "$endpoint" --executor cpu &
    mediator=$!
    tries=0
    until vgpu --endpoint "$endpoint" info >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ]
        kill -0 "$mediator"
        sleep 0.1
    done
    vgpu --endpoint "$endpoint" vector-add --n 100000
    vgpu --endpoint "$endpoint" run /session/saxpy.ptx --entry saxpy --grid 4 --block 256 \
        --arg f32:2.5 --arg in:/session/x --arg inout:/session/y:/tmp/out --arg i32:1000
    cmp /tmp/out /session/wanted
    /session/saxpy "$endpoint"
    vgpuctl status >/dev/null
    kill -TERM "$mediator"
    wait "$mediator"
done
echo "all sessions are right"
