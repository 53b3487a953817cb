#!/bin/sh
# The group that may open the devices.
getent group vgpu >/dev/null || groupadd --system vgpu || true
