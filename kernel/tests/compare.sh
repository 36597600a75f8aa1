#!/bin/sh
# compare.sh [NAME...]: the same traffic through both engines, packet for packet: two streams that are recorded here,
# and generated traffic with the same seeds each time. Results in the kernel's test format (KTAP).
# More: conformance compare --seed N --rounds N, and --capture FILE for any recording.
mkdir -p /tmp/compare && cd /tmp/compare || exit 1

rtp_app rx --engine kernel --leg 127.0.0.1:5004 --pcap two_streams.pcapng --ring-order 13 --count 1000 \
	--duration 30 --json >rx.json 2>rx.err &
receiver=$!
waited=0
until grep -q receiving rx.err || [ $waited = 200 ]; do
	sleep 0.05
	waited=$((waited + 1))
done
rtp_app tx --engine kernel --leg 127.0.0.1:5004 --rate 800 --payload 300 --count 500 >tx1.err 2>&1 &
sender=$!
rtp_app tx --engine user --leg 127.0.0.1:5004 --rate 700 --payload 1300 --count 500 >tx2.err 2>&1 || cat tx2.err
wait "$sender" || cat tx1.err
wait "$receiver" || cat rx.err

exec conformance compare --ktap --capture two_streams.pcapng --rounds 12 "$@"
