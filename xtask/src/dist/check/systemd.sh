# Runs as a unit of a systemd that runs nothing else, beside the installed packages. The mediator serves a socket of
# this machine, since there is no Xen.
set -eu
unit=vgpu-mediatord
settings=/etc/vgpu/mediatord.toml
endpoint=unix:/run/vgpu/guests.sock

fail() {
    echo "FAILED: $1"
    systemctl status $unit || true
    journalctl --no-pager -u $unit | tail -n 40
    exit 1
}

property() { systemctl show --value --property "$1" $unit; }

# Lines of the journal about the unit, systemd's own included.
lines() {
    journalctl --sync
    journalctl --no-pager --quiet --output cat --unit $unit | wc -l
}

configure() { printf 'listen = ["%s"]\nexecutor = "%s"\n' "$endpoint" "$1" >$settings; }

# Waits until the unit stays failed.
failed() {
    tries=0
    until [ "$(property ActiveState)" = failed ]; do
        tries=$((tries + 1))
        [ $tries -lt 3000 ] || fail "it still tries after 5 minutes"
        sleep 0.1
    done
}

cp $settings /run/shipped.toml
configure cpu
systemctl start $unit || fail "it does not start"
case $(property StatusText) in
"executor cpu"*) ;;
*) fail "its status is '$(property StatusText)'" ;;
esac
vgpu --endpoint $endpoint ping >/dev/null || fail "no session after a start"
pid=$(property MainPID)
[ "$(property OOMPolicy)" = continue ] || fail "a worker that is killed for memory stops it"

# As docs/operations.md says, while sessions go on.
systemctl set-property $unit MemoryMax=1G || fail "no limit on its memory can be set"
[ "$(property MemoryMax) $(property MainPID)" = "1073741824 $pid" ] || fail "it takes no limit on its memory"

echo 'weight = 5' >>$settings
! systemctl reload $unit || fail "it takes a wrong configuration at a reload"
configure cpu
printf '[limits]\nmax_sessions_per_guest = 3\n' >>$settings
systemctl reload $unit || fail "it does not reload"
[ "$(property ActiveState) $(property MainPID)" = "active $pid" ] || fail "a reload has ended it"
vgpu --endpoint $endpoint ping >/dev/null || fail "no session after a reload"

systemctl stop $unit || fail "it does not stop"
[ "$(property ActiveState) $(property Result)" = "inactive success" ] || fail "it has stopped badly"

# The service manager starts a killed one again.
systemctl start $unit || fail "it does not start again"
systemctl kill --kill-whom=main --signal KILL $unit
tries=0
until [ "$(property NRestarts) $(property ActiveState)" = "1 active" ]; do
    tries=$((tries + 1))
    [ $tries -lt 3000 ] || fail "it is not started again after it was killed"
    sleep 0.1
done
vgpu --endpoint $endpoint ping >/dev/null || fail "no session after a restart"
systemctl stop $unit

before=$(lines)
configure 'no such thing'
! systemctl start $unit || fail "it starts with a wrong configuration"
failed
[ "$(property NRestarts) $(property ExecMainStatus)" = "0 2" ] || fail "a wrong configuration is tried again"
echo "wrong-configuration lines $(($(lines) - before))"

systemctl reset-failed $unit
before=$(lines)
cp /run/shipped.toml $settings
began=$(date +%s)
! systemctl start $unit || fail "it starts without Xen"
failed
echo "without-xen lines $(($(lines) - before)) seconds $(($(date +%s) - began))"
echo "all of it holds"
