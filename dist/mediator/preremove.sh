#!/bin/sh
# An rpm says how many versions stay (1 or more in an upgrade), a deb what it does.
case "$1" in
0 | remove)
    if [ -d /run/systemd/system ]; then
        systemctl --quiet disable --now vgpu-mediatord || true
    fi
    ;;
esac
