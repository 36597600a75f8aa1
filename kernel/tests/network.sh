#!/bin/sh
# network.sh [FILTER...]: streams between two network namespaces that cables join, the engines mixed, with what
# networks do to packets (netem, nft).
# shellcheck source=/dev/null # Where the machine has it.
. /bin/namespaces.sh

prepare() {
	# A second of noise: 1,000 packets of 288 bytes.
	head -c 288000 /dev/urandom >sound
	wav sound.wav sound
	# 704 packets of a transport stream: 100 of RTP, and one that is shorter.
	head -c $((704 * 184)) /dev/urandom | xxd -p -c 184 | sed 's/^/47010010/' | xxd -r -p >programme.ts
}

# send ENGINE LEGS: the sound.
send() {
	transmit "$1" "$2" --input - --format L24/48000/2 --gso off <sound
}

# whole: everything arrived, bit for bit and in order.
whole() {
	received && books && figure_is lost 0 && figure_is packets 1000 && cmp out sound
}

# between FROM TO FORMAT: nothing happens on the way.
between() {
	cable 1 || return 1
	case $3 in
	raw) receive "$2" 1 out && send "$1" 1 && whole ;;
	ts)
		receive "$2" 1 out.ts && transmit "$1" 1 --input programme.ts --bitrate 2000000 || return 1
		received && books && figure_is packets 101 && figure_is lost 0 && cmp out.ts programme.ts
		;;
	wav)
		receive "$2" 1 out.wav --format L24/48000/2 && transmit "$1" 1 --input sound.wav || return 1
		received && books && figure_is packets 1000 && figure_is lost 0 && same_samples out.wav sound
		;;
	esac
}

# meanwhile FROM LEGS COUNT COMMAND...: sends, and when so many packets have come out of the cable of leg 1, the command is
# run, before the last of them.
meanwhile() {
	from=$1 to=$2 count=$3
	shift 3
	send "$from" "$to" &
	sender=$!
	passed "$count" 1 && "$@" || return 1
	kill -0 $sender || fails "the sender was quicker than the network" || return 1
	wait $sender
}

# reordered FROM TO: every fifth packet overtakes those of 10 ms. (At the beginning those would be late, and rightly so.)
reordered() {
	cable 1 || return 1
	receive "$2" 1 out && meanwhile "$1" 1 200 effects 1 delay 10ms reorder 100% gap 5 || return 1
	whole && figure_is_not reordered 0
}

# jittery FROM TO: and nobody overtakes, or many do.
jittery() {
	cable 1 || return 1
	receive "$2" 1 out && meanwhile "$1" 1 200 effects 1 delay 10ms 5ms && whole
}

copied() {
	cable 1 duplicate 20% || return 1
	receive "$2" 1 out && send "$1" 1 && whole && figure_is_not duplicate 0
}

# lossy FROM TO: every tenth packet is lost on the only leg.
lossy() {
	cable 1 && lose_tenths || return 1
	receive "$2" 1 out && send "$1" 1 && received && books || return 1
	without_tenths 288 <sound >kept
	# The last packet is one of the lost, and nobody can know.
	figure_is packets 900 && figure_is lost 99 && figure_is expected 999 && cmp out kept
}

# recovered FROM TO: leg 2 lacks nothing; leg 1 comes first, and from its 200th packet on lacks a tenth.
recovered() {
	cable 1 && cable 2 delay 20ms || return 1
	receive "$2" "1 2" out && meanwhile "$1" "1 2" 200 effects 1 loss 10% || return 1
	whole && figure_is_not duplicate 0 && figure_is_not recovered 0
}

# pulled FROM TO LEG
pulled() {
	cable 1 && cable 2 || return 1
	receive "$2" "1 2" out && meanwhile "$1" "1 2" 300 ip -n far link set "f$3" down || return 1
	whole && figure_is_not duplicate 0 && figure_is_not recovered 0
}

for pair in "kernel kernel" "kernel user" "user kernel"; do
	name=from_${pair% *}_to_${pair#* }
	for format in raw ts wav; do
		case_of "${name}_bit_for_bit_$format" between "$pair" $format
	done
	case_of "${name}_reordered_packets_arrive_in_order" reordered "$pair"
	case_of "${name}_what_is_lost_is_counted" lossy "$pair"
	case_of "${name}_what_one_leg_lacks_the_other_brings" recovered "$pair"
	[ "$name" != from_user_to_kernel ] || continue
	case_of "${name}_jitter_costs_nothing" jittery "$pair"
	case_of "${name}_copies_are_counted_and_not_delivered" copied "$pair"
	for leg in 1 2; do
		case_of "${name}_leg_${leg}_is_pulled_and_nothing_lost" pulled "$pair" $leg
	done
done

run_cases network "$@"
