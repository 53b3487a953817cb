#!/bin/sh
for module in xen-evtchn xen-gntdev; do
    modprobe "$module" 2>/dev/null || true
done
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    # An upgrade ends no sessions: the new version runs from the next restart on, at a time of your choice.
    if systemctl --quiet is-active vgpu-mediatord; then
        echo "vgpu-mediatord goes on with the old version; systemctl restart vgpu-mediatord ends its sessions"
    fi
fi
