#!/bin/sh
# network.sh [FILTER...]: streams between two network namespaces that cables join, the engines mixed, with what
# networks do to packets (netem, nft).
# shellcheck source=/dev/null # Where the machine has it.
. /bin/namespaces.sh

prepare() {
	# A second of noise: 1,000 packets of 288 bytes.
	head -c 288000 /dev/urandom >sound
	wav sound.wav sound
	head -c $((4 * 288000)) /dev/urandom >long
	# 704 packets of a transport stream: 100 of RTP, and one that is shorter.
	head -c $((704 * 184)) /dev/urandom | xxd -p -c 184 | sed 's/^/47010010/' | xxd -r -p >programme.ts
}

# send ENGINE LEGS [FILE]: the sound.
send() {
	transmit "$1" "$2" --input - --format L24/48000/2 --gso off <"${3:-sound}"
}

# whole [FILE PACKETS]: everything arrived, bit for bit and in order.
whole() {
	received && books && figure_is lost 0 && figure_is packets "${2:-1000}" && cmp out "${1:-sound}"
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

# meanwhile FROM LEGS COMMAND...: sends the long sound, and runs the command when packets have come out of the cable of
# leg 1 and before the last of them.
meanwhile() {
	from=$1 to=$2
	shift 2
	send "$from" "$to" long &
	sender=$!
	passed 300 1 && "$@" || return 1
	if ! kill -0 $sender; then
		# shellcheck disable=SC2034 # For `run_cases`.
		missing="this machine is too slow: all was sent before anything could be done to the network"
		return 1
	fi
	wait $sender
}

# reordered FROM TO: every 150th packet overtakes those of 10 ms: not the first, and not BYE.
reordered() {
	cable 1 delay 10ms reorder 100% gap 150 || return 1
	receive "$2" 1 out && send "$1" 1 && whole && figure_is_not reordered 0
}

# jittery FROM TO: from the middle on, since what comes after the first and was sent before it is late, and rightly so.
jittery() {
	cable 1 || return 1
	receive "$2" 1 out && meanwhile "$1" 1 effects 1 delay 10ms 5ms && whole long 4000
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

# recovered FROM TO: leg 2 lacks nothing; leg 1 comes first, and lacks every tenth packet.
recovered() {
	cable 1 && cable 2 delay 20ms && lose_tenths iifname f1 || return 1
	receive "$2" "1 2" out && send "$1" "1 2" && whole || return 1
	# The last of leg 1 is one of the missing, and might still have come.
	figure_is duplicate 900 && figure_is recovered 99
}

# pulled FROM TO LEG
pulled() {
	cable 1 && cable 2 || return 1
	receive "$2" "1 2" out && meanwhile "$1" "1 2" ip -n far link set "f$3" down || return 1
	whole long 4000 && figure_is_not duplicate 0 && figure_is_not recovered 0
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
