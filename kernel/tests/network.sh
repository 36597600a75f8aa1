#!/bin/sh
# network.sh: streams between two network namespaces that cables join, the engines mixed, with what networks do to
# packets (netem). Results in the kernel's test format (KTAP).
tmp=/tmp/network
number=0
failed=0
mkdir -p $tmp && cd $tmp || exit 1

# result NAME STATUS: 0 is a success; otherwise what the programs said follows.
result() {
	number=$((number + 1))
	if [ "$2" = 0 ]; then
		echo "ok $number network::$1"
	else
		sed 's/^/# /' rx.err tx.err rx.json
		echo "not ok $number network::$1"
		failed=1
	fi
}

# figure NAME: the first of that name in the receiver's last report.
figure() {
	tail -n 1 rx.json | grep -o "\"$1\":[0-9]*" | head -n 1 | cut -d : -f 2
}

# cable LEG [NETEM...]: joins the namespaces by a cable for leg 1 or 2, with these effects on the way to `far`. The
# neighbours know each other: nothing waits for an answer that may get lost.
cable() {
	leg=$1
	shift
	ip link add "n$leg" netns near type veth peer name "f$leg" address "02:00:00:00:00:0$leg" netns far
	ip -n near address add "10.1.$leg.1/24" dev "n$leg"
	ip -n far address add "10.1.$leg.2/24" dev "f$leg"
	ip -n near link set "n$leg" up
	ip -n far link set "f$leg" up
	ip -n near neighbour add "10.1.$leg.2" lladdr "02:00:00:00:00:0$leg" dev "n$leg"
	ip netns exec near tc qdisc add dev "n$leg" root netem limit 10000 "$@"
	# The kernel takes up to a second to believe in a cable, and until then drops what is sent.
	tries=0
	until ip netns exec near ping -c 1 -W 1 "10.1.$leg.2" >/dev/null 2>&1 || [ $tries = 10 ]; do
		tries=$((tries + 1))
	done
}

# effects LEG NETEM...: on the way of leg 1 or 2 to `far`, from now on.
effects() {
	leg=$1
	shift
	ip netns exec near tc qdisc change dev "n$leg" root netem limit 10000 "$@"
}

uncable() {
	for leg in 1 2; do ip -n near link delete "n$leg" 2>/dev/null; done
}

# receive ENGINE LEG...: a receiver in `far`, until its sender is silent for 2 s; its number is in $receiver.
receive() {
	by=$1
	shift
	legs=
	for leg in "$@"; do legs="$legs --leg 10.1.$leg.2:5004"; done
	: >rx.err
	# shellcheck disable=SC2086 # Words.
	ip netns exec far rtp_app rx --engine "$by" $legs --out out --reorder 100 --ring-order 13 \
		--idle-timeout 2 --json >rx.json 2>rx.err &
	receiver=$!
	waited=0
	until grep -q receiving rx.err || [ $waited = 200 ]; do
		sleep 0.05
		waited=$((waited + 1))
	done
}

# transmit ENGINE LEG...: sends the sound from `near`; how that ended is in tx.status.
transmit() {
	by=$1
	shift
	legs=
	for leg in "$@"; do legs="$legs --leg 10.1.$leg.2:5004"; done
	# shellcheck disable=SC2086 # Words.
	ip netns exec near rtp_app tx --engine "$by" --input - --format L24/48000/2 $legs <sound >tx.err 2>&1
	echo $? >tx.status
}

# same NAME [FIGURE...]: everything arrived, bit for bit and in order, and these figures are not 0.
same() {
	name=$1
	shift
	wait "$receiver"
	status=$?
	[ "$(cat tx.status)" = 0 ] || status=1
	cmp out sound >>rx.err 2>&1 || status=1
	[ "$(figure lost)" = 0 ] || status=1
	for wanted in "$@"; do [ "$(figure "$wanted")" -gt 0 ] || status=1; done
	result "$name" $status
}

ip netns add near
ip netns add far
ip -n near link set lo up
ip -n far link set lo up
# One and a half seconds of noise, 48,000 samples a second, two channels.
head -c 432000 /dev/urandom >sound

echo "KTAP version 1"
echo "1..17"

cable 1
for pair in "kernel kernel" "kernel user" "user kernel"; do
	# shellcheck disable=SC2086 # Words.
	set -- $pair
	receive "$2" 1
	transmit "$1" 1
	same "from_${1}_to_${2}_bit_for_bit"
done
uncable

for engine in kernel user; do
	# From the middle on: what comes before the first packet of all is late, and rightly so.
	cable 1
	receive "$engine" 1
	transmit kernel 1 &
	sender=$!
	sleep 0.5
	effects 1 delay 10ms reorder 25% 50%
	wait "$sender"
	same "reordered_packets_arrive_in_order_$engine" reordered
	uncable

	cable 1
	receive "$engine" 1
	transmit kernel 1 &
	sender=$!
	sleep 0.5
	effects 1 delay 10ms 5ms
	wait "$sender"
	same "jitter_costs_nothing_$engine"
	uncable

	cable 1 duplicate 20%
	receive "$engine" 1
	transmit kernel 1
	same "copies_are_counted_and_not_delivered_$engine" duplicate
	uncable

	# What is lost on the only leg is known and counted.
	cable 1 loss 10%
	receive "$engine" 1
	transmit kernel 1
	wait "$receiver"
	status=$?
	[ "$(cat tx.status)" = 0 ] || status=1
	lost=$(figure lost)
	[ "$lost" -gt 0 ] && [ $((lost + $(figure packets))) = "$(figure expected)" ] || status=1
	result "lost_packets_are_counted_$engine" $status
	uncable

	# Leg 2 lacks nothing; leg 1 comes first, and from the middle on lacks a tenth. (Were it the first packet of
	# all, leg 2 would bring it late.)
	cable 1
	cable 2 delay 20ms
	receive "$engine" 1 2
	transmit kernel 1 2 &
	sender=$!
	sleep 0.5
	effects 1 loss 10%
	wait "$sender"
	same "what_one_leg_lacks_the_other_brings_$engine" duplicate recovered
	uncable

	for pulled in 1 2; do
		cable 1
		cable 2
		receive "$engine" 1 2
		transmit kernel 1 2 &
		sender=$!
		sleep 0.6
		ip -n far link set "f$pulled" down
		wait "$sender"
		same "leg_${pulled}_is_pulled_and_nothing_lost_$engine" duplicate
		uncable
	done
done

ip netns delete near
ip netns delete far
exit $failed
