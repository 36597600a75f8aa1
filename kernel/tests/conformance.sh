#!/bin/sh
# conformance.sh [NAME...]: the behaviours of the API on the kernel engine. Some of them are another user, who
# may open the device of this machine.
chmod 666 /dev/rtp_mgr && exec conformance --engine kernel --ktap --jobs 3 "$@"
