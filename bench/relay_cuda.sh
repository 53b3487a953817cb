#!/bin/sh
# The relay beside the direct path, on a machine with a GPU, and without cargo.
#
#   bench/relay_cuda.sh FOLDER [EXECUTOR]
#
# FOLDER holds the release programs vgpu, vgpu-mediatord and vgpuctl; EXECUTOR is cuda unless given.
# One mediator runs the work and serves local: and, with a secret, tcp:. Two more relay to it. Vector
# adds of 1,048,576 and 67,108,864 elements are verified by every way, then timed in turn: direct and
# relayed, three rounds. The last lines are ratios of the medians. Everything is removed at the end.
set -eu

programs=$(cd "${1:?which folder holds the programs?}" && pwd)
executor=${2:-cuda}
place=$(mktemp -d "${TMPDIR:-/tmp}/vgpu-relay-XXXXXX")
children=
end() {
    for child in $children; do
        kill "$child" 2>/dev/null || true
    done
    wait
    rm -rf "$place"
}
trap end EXIT
trap 'exit 1' INT TERM

# A port that nobody listens at: the first of a few that can be taken.
port=$((20000 + $$ % 20000))
umask 077
"$programs/vgpuctl" secret bench >"$place/secret"

# mediator NAME LISTEN EXECUTOR: starts one and waits until it answers.
mediator() {
    "$programs/vgpu-mediatord" --listen "$2" --executor "$3" --control "$place/$1.ctl" \
        --secrets "$place/secret" --relay-secret "$place/secret" 2>"$place/$1.log" &
    children="$children $!"
    tries=0
    until "$programs/vgpuctl" --control "$place/$1.ctl" status >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ] || ! kill -0 "$!" 2>/dev/null; then
            echo "the mediator $1 does not start:" >&2
            cat "$place/$1.log" >&2
            exit 1
        fi
        sleep 0.2
    done
}

tcp=tcp:127.0.0.1:$port
mediator behind "local:$place/behind,$tcp" "$executor"
mediator over-local "local:$place/over-local" "relay:local:$place/behind"
mediator over-tcp "local:$place/over-tcp" "relay:$tcp"

# gpu ENDPOINT ARGUMENTS…
gpu() {
    endpoint=$1
    shift
    "$programs/vgpu" --endpoint "$endpoint" --secret-file "$place/secret" "$@"
}

gpu "local:$place/over-tcp" info
for endpoint in "local:$place/behind" "$tcp" "local:$place/over-local" "local:$place/over-tcp"; do
    for elements in 1048576 67108864; do
        echo "verify $endpoint $elements"
        # Its status is 0 only if every sum was right.
        gpu "$endpoint" --json vector-add --n $elements
    done
done

# measure NAME ENDPOINT: appends `NAME WHAT MICROSECONDS` to the figures.
measure() {
    gpu "$2" --json bench --repeats 5 --pings 2000 --sizes 1048576,67108864 >"$place/bench"
    sed -n 's/.*"kind":"round_trip".*"median_us":\([0-9.e+-]*\).*/\1/p;
            s/.*"median_us":\([0-9.e+-]*\).*"kind":"round_trip".*/\1/p' "$place/bench" |
        while read -r us; do echo "$1 round-trip $us"; done >>"$place/figures"
    for elements in 1048576 67108864; do
        sed -n "/\"elements\":$elements[,}]/s/.*\"median_seconds\":\([0-9.e+-]*\).*/\1/p" "$place/bench" |
            while read -r s; do echo "$1 add-$elements $s" | awk '{print $1, $2, $3 * 1e6}'; done \
                >>"$place/figures"
    done
}

for round in 1 2 3; do
    echo "round $round of 3" >&2
    measure direct-local "local:$place/behind"
    measure relay-local "local:$place/over-local"
    measure direct-tcp "$tcp"
    measure relay-tcp "local:$place/over-tcp"
done

echo
sort "$place/figures" | awk '
    function median(list, parts, n, i, j, t) {
        n = split(list, parts, " ")
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && parts[j - 1] + 0 > parts[j] + 0; j--) {
                t = parts[j]; parts[j] = parts[j - 1]; parts[j - 1] = t
            }
        return parts[int((n + 1) / 2)]
    }
    { all[$1 " " $2] = all[$1 " " $2] " " $3; rows[$2] = 1 }
    END {
        printf "%-14s %14s %14s %7s %14s %14s %7s\n", "median, us", "direct local", "relay:local:", "ratio", "direct tcp", "relay:tcp:", "ratio"
        for (row in rows) {
            a = median(all["direct-local " row]); b = median(all["relay-local " row])
            c = median(all["direct-tcp " row]); d = median(all["relay-tcp " row])
            printf "%-14s %14.1f %14.1f %7.2f %14.1f %14.1f %7.2f\n", row, a, b, b / a, c, d, d / c
        }
    }'
