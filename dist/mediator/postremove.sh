#!/bin/sh
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
case "$1" in
purge)
    rmdir /etc/vgpu 2>/dev/null || true
    ;;
esac
