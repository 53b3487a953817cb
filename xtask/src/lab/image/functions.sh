# Shell functions for scripts in dom0 (sourced by the agent and `lab shell`).
# In a guest nothing here is of use but PATH.

GUEST_KERNEL=/boot/vmlinux

# guest_create NAME pv|pvh [memory=MIB] [vcpus=N] [cpus=LIST] [maptrack=FRAMES] [address=10.77.0.N]
#   [cmdline=WORDS]
# Starts a guest and waits until its agent answers. With an address it has a network to dom0.
guest_create() {
    local name=$1 type=$2 memory=320 vcpus=1 cpus= maptrack= address= cmdline= quick word
    local initrd=/run/lab/guest.cpio parts=/boot/base.cpio
    shift 2
    for word in "$@"; do
        case $word in
        memory=*) memory=${word#*=} ;;
        vcpus=*) vcpus=${word#*=} ;;
        cpus=*) cpus=${word#*=} ;;
        maptrack=*) maptrack=${word#*=} ;;
        address=*) address=${word#*=} ;;
        cmdline=*) cmdline=${word#*=} ;;
        *) echo "guest_create: what is $word?" >&2; return 2 ;;
        esac
    done
    if [ -n "$address" ]; then
        network_up || return
        initrd=/run/lab/networked.cpio parts="$parts /boot/network.cpio"
        cmdline="lab.address=$address $cmdline"
    fi
    # Without mitigations, because QEMU's emulation of SVM loses track of a PVH guest's page tables
    # when each entry to the kernel changes them: it ends in a triple fault after some seconds.
    # Without a search in ports for PCI and serial lines that no guest has, where each access leaves a PVH
    # guest, and without a walk through all page tables in the end. With the processor's own time stamps, as on a
    # machine where Xen knows them to be reliable: otherwise it emulates each reading of them. With programs at the same
    # addresses each time, as in dom0 (qemu.rs).
    quick="pci=noearly 8250.nr_uarts=0 rodata=off clocksource=tsc tsc=reliable norandmaps"
    [ -e $initrd ] || cat $parts /boot/project.cpio >$initrd
    {
        printf 'name="%s"\ntype="%s"\nmemory=%s\nvcpus=%s\n' "$name" "$type" "$memory" "$vcpus"
        printf 'kernel="%s"\nramdisk="%s"\n' $GUEST_KERNEL $initrd
        printf 'extra="console=hvc0 quiet loglevel=4 panic=1 mitigations=off init_on_alloc=0 %s lab.name=%s %s"\n' "$quick" "$name" "$cmdline"
        printf 'tsc_mode="native"\n'
        printf 'on_poweroff="destroy"\non_crash="destroy"\non_reboot="destroy"\n'
        [ -z "$maptrack" ] || printf 'max_maptrack_frames=%s\n' "$maptrack"
        [ -z "$address" ] || printf 'vif=["ip=%s,script=vif-lab"]\n' "$address"
        [ -z "$cpus" ] || printf 'cpus="%s"\n' "$cpus"
    } >"/run/lab/$name.cfg"
    local try
    for try in 1 2 3; do
        rm -f "/run/lab/$name.boot"
        xl create -q "/run/lab/$name.cfg" >&2 || return
        xl domid "$name" >"/run/lab/$name.domid" && guest_wait "$name" 400 && return
        # QEMU's emulation of SVM now and then ends a PVH guest with a triple fault.
        guest_lives "$name" && return 1
        echo "lab: guest $name ended while booting (try $try)" >&2
    done
    return 1
}

# network_up: makes dom0 fit for guests with a network, and for NFS (lab/network.sh).
network_up() {
    [ ! -e /lab/network.sh ] || return 0
    (cd / && cpio -idu <boot/network.cpio) && modprobe xen-netback
}

# guest_domid NAME
guest_domid() {
    local domid
    read -r domid 2>/dev/null <"/run/lab/$1.domid" || { echo "there is no guest $1" >&2; return 1; }
    echo "$domid"
}

# guest_lives NAME
guest_lives() {
    local domid
    read -r domid 2>/dev/null <"/run/lab/$1.domid" && xenstore-exists "/local/domain/$domid/console"
}

# guest_wait NAME SECONDS: until the guest's agent says that it is ready.
guest_wait() {
    local line tty end=$(($(date +%s) + $2)) n=0
    until tty=$(xenstore-read "/local/domain/$(guest_domid "$1")/console/tty" 2>/dev/null); do
        n=$((n + 1))
        [ $n -lt 100 ] || { echo "guest $1 has no console" >&2; return 1; }
        usleep 100000
    done
    echo "$tty" >"/run/lab/$1.tty"
    exec 4<>"$tty" || return
    while [ "$(date +%s)" -lt "$end" ]; do
        read -r -t 5 line <&4 || { guest_lives "$1" && continue || break; }
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
    lab-agent guest "$1" "$2"
}

# guest_exec NAME COMMAND…: the same for one command line (LIMIT=seconds, default 120).
guest_exec() {
    local name=$1
    shift
    printf '%s\n' "$*" | guest_run "$name" "${LIMIT:-120}"
}

# guest_destroy NAME: ends it at once, and waits until Xen has forgotten it.
guest_destroy() {
    local n=0 domid
    domid=$(guest_domid "$1") || return
    rm -f "/run/lab/$1.tty" "/run/lab/$1.domid"
    xl destroy "$domid" || return
    while xl domname "$domid" >/dev/null 2>&1; do
        n=$((n + 1))
        [ $n -lt 100 ] || { echo "guest $1 is still there 10 s after xl destroy" >&2; return 1; }
        usleep 100000
    done
}
