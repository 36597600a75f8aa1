#!/bin/sh
# unload.sh: unloads the module. Safe to run again.
set -eu

if [ ! -d /sys/module/rtp_mgr ]; then
	echo "rtp_mgr is not loaded"
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "unload.sh: needs root: sudo $0" >&2
	exit 1
fi
if ! rmmod rtp_mgr; then
	echo "unload.sh: a program has /dev/rtp_mgr open or mapped: end it first" \
	     "(fuser -v /dev/rtp_mgr names those that have it open)" >&2
	exit 1
fi
echo "rtp_mgr is unloaded"
