#!/bin/sh
# soak.sh [NAME...]: streams of the kernel engine under load while readers stall and die, for a few seconds; then the
# module has to go, and comes back for whatever runs next. Results in the kernel's test format (KTAP).
# Longer: conformance soak --engine kernel --seconds 120.
conformance soak --engine kernel --ktap --seconds 5 "$@"
failed=$?
rmmod rtp_mgr || failed=1
insmod /lib/rtp_mgr.ko || failed=1
exit $failed
