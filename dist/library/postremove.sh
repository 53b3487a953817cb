#!/bin/sh
# Nothing of it stays in ldconfig's cache.
[ ! -x /sbin/ldconfig ] || /sbin/ldconfig
