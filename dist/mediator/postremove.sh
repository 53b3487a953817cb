#!/bin/sh
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
# Of a deb what it does; of an rpm, how many versions stay.
case "$1" in
purge | 0)
    rmdir /etc/vgpu 2>/dev/null || true
    ;;
esac
