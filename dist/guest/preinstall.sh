#!/bin/sh
# The group that may open the devices.
getent group vgpu >/dev/null || groupadd --system vgpu || echo "no group vgpu could be made: only root may use the devices" >&2
