#!/bin/sh
# What xl calls for a guest's network interface: `online` when netback has made it.
# dom0 has the same address on each, and a route to the one address behind it.
export PATH=/usr/lib/xen-4.17/bin:/usr/sbin:/usr/bin
exec >>/var/log/xen/vif.log 2>&1
echo "$1 $vif $XENBUS_PATH"
case $1 in
online)
    ip link set "$vif" up &&
        ip addr add 10.77.0.1/32 dev "$vif" &&
        ip route add "$(xenstore-read "$XENBUS_PATH/ip")/32" dev "$vif" src 10.77.0.1 &&
        xenstore-write "$XENBUS_PATH/hotplug-status" connected
    ;;
esac
