#!/bin/sh
# load.sh [PARAMETER=VALUE...]: builds the module if it is not built, and loads it.
# Parameters: ring_order, max_ring_mb, max_user_mb, max_user_streams, dma_interval_ms. Safe to run again.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
module=$here/kernel/rtp_mgr.ko

fail() {
	echo "load.sh: $*" >&2
	exit 1
}

if [ -d /sys/module/rtp_mgr ]; then
	[ $# = 0 ] || fail "already loaded: scripts/unload.sh first, to load it with $*"
	echo "rtp_mgr is already loaded"
	exit 0
fi
[ "$(id -u)" = 0 ] || fail "needs root: sudo $0 $*"
[ -e "$module" ] || make -C "$here/kernel"
if ! insmod "$module" "$@"; then
	# Its last words on the matter; reading them may be forbidden.
	said=$(dmesg 2>/dev/null | grep -E 'rtp_mgr: |Lockdown: .*module|Loading of (unsigned )?module' | tail -n 1) || true
	case $said in
	*Lockdown* | *Loading*)
		remedy="Secure Boot or lockdown wants the module signed: see docs/BUILD-DEPLOY-GUIDE.md" ;;
	*"version magic"*)
		remedy="it is built for another kernel: make -C kernel clean, and load.sh again" ;;
	*) remedy="dmesg may say more" ;;
	esac
	fail "the kernel refused it${said:+ and said: $said}; $remedy"
fi
echo "rtp_mgr is loaded:"
ls -l /dev/rtp_mgr
