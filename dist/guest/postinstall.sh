#!/bin/sh
# For now; from the next boot on, the files in modules-load.d and rules.d do this. In a chroot and outside
# Xen there is nothing to load.
for module in xen-evtchn xen-gntalloc; do
    modprobe "$module" 2>/dev/null || true
done
udevadm control --reload 2>/dev/null && udevadm trigger --subsystem-match=misc 2>/dev/null || true
