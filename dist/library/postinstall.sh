#!/bin/sh
# Programs find the library by ldconfig's cache.
[ ! -x /sbin/ldconfig ] || /sbin/ldconfig
