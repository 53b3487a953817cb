# Shell functions for scripts in dom0 (sourced by the agent and `lab shell`).
# In a guest nothing here is of use but PATH.

GUEST_KERNEL=/boot/vmlinuz GUEST_INITRD=/run/lab/guest.cpio

# guest_create NAME pv|pvh [memory=MIB] [vcpus=N] [cpus=LIST] [maptrack=FRAMES] [cmdline=WORDS]
# Starts a guest and waits until its agent answers.
guest_create() {
    local name=$1 type=$2 memory=320 vcpus=1 cpus= maptrack= cmdline= word
    shift 2
    for word in "$@"; do
        case $word in
        memory=*) memory=${word#*=} ;;
        vcpus=*) vcpus=${word#*=} ;;
        cpus=*) cpus=${word#*=} ;;
        maptrack=*) maptrack=${word#*=} ;;
        cmdline=*) cmdline=${word#*=} ;;
        *) echo "guest_create: what is $word?" >&2; return 2 ;;
        esac
    done
    [ -e $GUEST_INITRD ] || cat /boot/base.cpio /boot/project.cpio >$GUEST_INITRD
    {
        printf 'name="%s"\ntype="%s"\nmemory=%s\nvcpus=%s\n' "$name" "$type" "$memory" "$vcpus"
        printf 'kernel="%s"\nramdisk="%s"\n' $GUEST_KERNEL $GUEST_INITRD
        printf 'extra="console=hvc0 quiet loglevel=4 panic=1 lab.name=%s %s"\n' "$name" "$cmdline"
        printf 'on_poweroff="destroy"\non_crash="destroy"\non_reboot="destroy"\n'
        [ -z "$maptrack" ] || printf 'max_maptrack_frames=%s\n' "$maptrack"
        [ -z "$cpus" ] || printf 'cpus="%s"\n' "$cpus"
    } >"/run/lab/$name.cfg"
    local try
    for try in 1 2 3; do
        rm -f "/run/lab/$name.boot"
        xl create -q "/run/lab/$name.cfg" >&2 || return
        guest_wait "$name" 180 && return
        # QEMU's emulation of SVM now and then ends a PVH guest with a triple fault.
        xl domid "$name" >/dev/null 2>&1 && return 1
        echo "lab: guest $name ended while booting (try $try)" >&2
    done
    return 1
}

# guest_domid NAME
guest_domid() { xl domid "$1"; }

# guest_tty NAME: the pseudo-terminal of the guest's console.
guest_tty() {
    local domid n=0
    domid=$(xl domid "$1") || return
    until xenstore-read "/local/domain/$domid/console/tty" 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 100 ] || { echo "guest $1 has no console" >&2; return 1; }
        usleep 100000
    done
}

# guest_wait NAME SECONDS: until the guest's agent says that it is ready.
guest_wait() {
    local line tty end=$(($(date +%s) + $2))
    tty=$(guest_tty "$1") || return
    exec 4<>"$tty" || return
    while [ "$(date +%s)" -lt "$end" ]; do
        read -r -t 5 line <&4 || { xl domid "$1" >/dev/null 2>&1 && continue || break; }
        if [ "$line" = @ready ]; then
            exec 4>&-
            return 0
        fi
        echo "$line" >>"/run/lab/$1.boot"
    done
    exec 4>&-
    echo "guest $1 did not come up within $2 s; its console:" >&2
    tail -n 20 "/var/log/xen/console/guest-$1.log" >&2
    return 1
}

# guest_run NAME SECONDS <SCRIPT: runs a shell script in the guest; its output
# and status become this function's.
guest_run() {
    (
        exec 9>"/run/lab/$1.lock"
        flock 9
        body=$(base64 -w 0)
        id=$(cut -c1-8 /proc/sys/kernel/random/uuid)
        answer=/run/lab/$1.answer
        tty=$(guest_tty "$1") || exit 125
        exec 4<>"$tty" || exit 125
        request="@req $id $2 ${#body} $body"
        for try in 1 2 3 4; do
            printf '\n%s\n' "$request" >&4
            timeout -s KILL $(($2 + 30)) \
                sed -n "/^@[a-z]* $id/p; /^@end $id /q; /^@bad $id/q" <&4 >"$answer" 2>/dev/null
            if ! xl domid "$1" >/dev/null 2>&1; then
                echo "guest $1 is gone" >&2
                exit 125
            fi
            set -- "$1" "$2" $(grep "^@end $id " "$answer")
            out=$(sed -n "s/^@out $id //p" "$answer" | tr -d '\n')
            err=$(sed -n "s/^@err $id //p" "$answer" | tr -d '\n')
            if [ "$3" = @end ] && [ ${#out} = "$6" ] && [ ${#err} = "$7" ]; then
                [ -z "$out" ] || echo "$out" | base64 -d
                [ -z "$err" ] || echo "$err" | base64 -d >&2
                exit "$5"
            fi
            # Damaged on the way there: send it again. On the way back: ask for
            # the answer again, but do not run the script twice.
            grep -q "^@bad $id" "$answer" || request="@again $id"
            set -- "$1" "$2"
        done
        echo "guest $1 did not answer within $2 s" >&2
        exit 124
    )
}

# guest_exec NAME COMMAND…: the same for one command line (LIMIT=seconds, default 120).
guest_exec() {
    local name=$1
    shift
    printf '%s\n' "$*" | guest_run "$name" "${LIMIT:-120}"
}

# guest_destroy NAME: ends it at once, and waits until Xen has forgotten it.
guest_destroy() {
    xl destroy "$1" || return
    local n=0
    while xl domid "$1" >/dev/null 2>&1; do
        n=$((n + 1))
        [ $n -lt 100 ] || { echo "guest $1 is still there 10 s after xl destroy" >&2; return 1; }
        usleep 100000
    done
}
