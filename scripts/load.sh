#!/bin/sh
# load.sh [PARAMETER=VALUE...]: builds the module if it is not built, and loads it.
# Parameters: ring_order, max_ring_mb, max_user_mb, dma_interval_ms. Safe to run again.
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
insmod "$module" "$@" || fail "the kernel refused it: dmesg says why. With Secure Boot or lockdown the" \
	"module must be signed (docs/BUILD-DEPLOY-GUIDE.md)"
echo "rtp_mgr is loaded:"
ls -l /dev/rtp_mgr
