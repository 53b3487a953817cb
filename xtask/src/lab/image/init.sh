#!/bin/sh
# The first process of dom0 and of every guest. Kernel command line:
#   lab.xenstored=c|oxen   which xenstored dom0 starts
#   lab.calls=old          dom0's programs have Linux 4.19's system calls alone (`old-linux`)
#   lab.modules=none       load no Xen modules (to test what happens without)
#   lab.shell              an interactive shell on the console, no agent on ttyS1
#   lab.name=NAME          host name of a guest
#   lab.address=10.77.0.N  address of a guest in the network to dom0
export PATH=/opt/vgpu/bin:/usr/lib/xen-4.17/bin:/usr/sbin:/usr/bin HOME=/root TERM=linux
umask 022

# As few processes as possible: each costs some 30 ms here, in every guest.
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -a # /etc/fstab
ip link set lo up

xenstored=c modules=all shell= name=dom0 address= calls=
read -r words </proc/cmdline
for word in $words; do
    case $word in
    lab.xenstored=*) xenstored=${word#*=} ;;
    lab.calls=*) calls=${word#*=} ;;
    lab.modules=*) modules=${word#*=} ;;
    lab.shell) shell=yes ;;
    lab.name=*) name=${word#*=} ;;
    lab.address=*) address=${word#*=} ;;
    esac
done
echo "$name" >/proc/sys/kernel/hostname

if [ "$modules" = all ]; then
    modprobe -a xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc || echo "lab: a module is missing"
    mount -t xenfs xenfs /proc/xen
fi

if [ -n "$address" ]; then
    modprobe xen-netfront
    modprobe nfsv4 # mount does not ask for it: there is no modules.alias
    n=0
    until [ -e /sys/class/net/eth0 ] || [ $n -ge 300 ]; do
        n=$((n + 1))
        usleep 100000
    done
    ip addr add "$address/24" dev eth0
    ip link set eth0 up
fi

if [ ! -e /lab/unpacked ]; then
    echo "lab: the memory is too small for the initramfs" >/dev/hvc0
    poweroff -f
fi

capabilities=
[ ! -e /proc/xen/capabilities ] || read -r capabilities </proc/xen/capabilities
if [ "$capabilities" != control_d ]; then
    # A guest: its console carries the agent, so the kernel stays quiet on it.
    echo 1 >/proc/sys/kernel/printk
    stty -F /dev/hvc0 raw -echo
    while :; do
        lab-agent serve /run/agent </dev/hvc0 >/dev/hvc0 2>/run/agent.log
    done
fi

mkdir -p /run/xen /run/xenstored /run/lab /var/log/xen/console /var/lib/xen /var/lib/xenstored
case $xenstored in
c) xenstored --pid-file=/run/xenstored.pid ;;
oxen)
    # In the foreground of a background job: what it has to say is not lost.
    oxenstored --no-fork --no-access-log >/var/log/xen/oxenstored.log 2>&1 &
    echo $! >/run/xenstored.pid
    n=0
    until [ -S /run/xenstored/socket ]; do
        n=$((n + 1))
        [ $n -lt 100 ] || { cat /var/log/xen/oxenstored.log; break; }
        usleep 100000
    done
    ;;
*) echo "lab: unknown xenstored $xenstored" ;;
esac
xen-init-dom0 >/run/lab/xen-init-dom0.log 2>&1 || cat /run/lab/xen-init-dom0.log
xenconsoled --log=guest --pid-file=/run/xenconsoled.pid
echo "lab: dom0 is up ($xenstored xenstored)"

if [ -n "$shell" ]; then
    echo "lab: 'exit' or 'poweroff -f' ends the lab; guest_create NAME pv|pvh, guest_exec NAME CMD"
    ENV=/lab/functions.sh setsid cttyhack sh -i
    poweroff -f
fi
stty -F /dev/ttyS1 raw -echo 115200
# Without the project's programs there is none of this either.
[ "$calls" = old ] && command -v old-linux >/dev/null && limited=old-linux || limited=
while :; do
    $limited lab-agent serve /run/agent </dev/ttyS1 >/dev/ttyS1 2>/run/lab/agent.log
done
