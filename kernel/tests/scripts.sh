#!/bin/sh
# scripts.sh FOLDER: scripts/load.sh and unload.sh of the checkout in FOLDER, whose module is built. Begins and
# ends with the module loaded. Results in the kernel's test format (KTAP).
cd "$1" || exit 1
number=0
failed=0
out=/tmp/scripts.out

# check NAME STATUS TEXT COMMAND...: the command ends with STATUS and says TEXT.
check() {
	name=$1 status=$2 text=$3
	shift 3
	number=$((number + 1))
	"$@" >$out 2>&1
	found=$?
	if [ $found = "$status" ] && grep -q -e "$text" $out; then
		echo "ok $number scripts::$name"
	else
		echo "# $* ended with $found, not $status, or did not say '$text':"
		sed 's/^/# /' $out
		echo "not ok $number scripts::$name"
		failed=1
	fi
}

# shellcheck disable=SC2317 # Called by check.
while_open() {
	(exec 3<>/dev/rtp_mgr && "$@")
}

echo "KTAP version 1"
echo "1..8"
check loading_again_is_no_error 0 'already loaded' scripts/load.sh
check loading_again_with_other_parameters_is_refused 1 'unload.sh first' scripts/load.sh ring_order=9
check unloading_while_open_is_refused 1 'has /dev/rtp_mgr open' while_open scripts/unload.sh
check unloading_works 0 'rtp_mgr is unloaded' scripts/unload.sh
check unloading_again_is_no_error 0 'is not loaded' scripts/unload.sh
check a_bad_parameter_is_named_by_the_kernel 1 'ring_order=99 is not in 4 to 20' scripts/load.sh ring_order=99
check loading_works 0 '/dev/rtp_mgr' scripts/load.sh ring_order=8
check the_parameter_was_taken 0 'ABI [0-9.]*, ring_order 8' dmesg
exit $failed
