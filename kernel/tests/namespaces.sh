# shellcheck shell=sh
# namespaces.sh: what the tests of streams between two network namespaces are made of; read by those tests. The
# senders are in `near`, the receivers in `far`, and cables join them. Results in the kernel's test format (KTAP).
cases=
failed=0

# case_of NAME FUNCTION [ARGUMENT...]: adds a test. Words without spaces.
case_of() {
	cases="$cases$*
"
}

# run_cases SUITE [FILTER...]: runs the tests whose names have one of these in them, or all, and ends the script. A
# test that found no network to try is not run, and yet no success of the script.
run_cases() {
	suite=$1
	shift
	chosen=$(printf %s "$cases" | chosen_by "$@")
	count=$(printf %s "$chosen" | grep -c .)
	number=0
	mkdir -p "/tmp/$suite" && cd "/tmp/$suite" || exit 1
	echo "KTAP version 1"
	echo "1..$count"
	[ "$count" -gt 0 ] || exit 0
	ip netns add near
	ip netns add far
	ip -n near link set lo up
	ip -n far link set lo up
	prepare
	while read -r name function words; do
		[ -n "$name" ] || continue
		number=$((number + 1))
		missing=
		rm -f out* report errors tx.errors tx.status
		: >errors
		# shellcheck disable=SC2086 # Words.
		if $function $words </dev/null >>errors 2>&1; then
			echo "ok $number $suite::$name"
		elif [ -n "$missing" ]; then
			echo "ok $number $suite::$name # SKIP $missing"
			failed=1
		else
			{
				tail -n 20 errors
				[ ! -e tx.errors ] || tail -n 5 tx.errors
				[ ! -e report ] || tail -n 1 report
			} | sed 's/^/# /'
			echo "not ok $number $suite::$name"
			failed=1
		fi
		tidy
	done <<-END
		$chosen
	END
	ip netns delete near
	ip netns delete far
	exit $failed
}

chosen_by() {
	while read -r line; do
		[ $# -gt 0 ] || echo "$line"
		for filter in "$@"; do
			case $suite::${line%% *} in *"$filter"*) echo "$line" && break ;; esac
		done
	done
}

# fails WORD...: says why, and is no success.
fails() {
	echo "$*"
	return 1
}

# cable LEG [NETEM...]: joins the namespaces by a cable for leg 1 or 2, with these effects on the way to `far`. The
# neighbours know each other: nothing waits for an answer that may get lost. Fails when no packet passes in 30 s (the
# kernel takes up to a second to believe in a cable, and until then drops what is sent).
cable() {
	leg=$1
	shift
	ip link add "n$leg" netns near type veth peer name "f$leg" address "02:00:00:00:00:0$leg" netns far
	ip -n near address add "10.1.$leg.1/24" dev "n$leg"
	ip -n far address add "10.1.$leg.2/24" dev "f$leg"
	ip -n near link set "n$leg" up
	ip -n far link set "f$leg" up
	ip -n near neighbour add "10.1.$leg.2" lladdr "02:00:00:00:00:0$leg" dev "n$leg"
	# One CPU takes them: two could swap the first packets of a stream, and what was sent first would be late.
	# shellcheck disable=SC2016 # The other shell's.
	ip netns exec far sh -c 'echo 1 >"/sys/class/net/f$1/queues/rx-0/rps_cpus"' sh "$leg"
	tries=0
	until ip netns exec near ping -c 1 -W 1 "10.1.$leg.2" >/dev/null 2>&1; do
		tries=$((tries + 1))
		if [ $tries = 30 ]; then
			missing="no packet passes the cable of leg $leg"
			return 1
		fi
	done
	ip netns exec near tc qdisc add dev "n$leg" root netem limit 10000 "$@"
}

# effects LEG NETEM...: on the way of leg 1 or 2 to `far`, from now on.
effects() {
	leg=$1
	shift
	ip netns exec near tc qdisc change dev "n$leg" root netem limit 10000 "$@"
}

# lose_tenths [MATCH]: every tenth packet for the port of the streams that matches is lost, and no other: never the first.
lose_tenths() {
	ip netns exec far nft -f - <<-END
		table ip far {
			chain in {
				type filter hook prerouting priority raw
				udp dport 5004 $* numgen inc mod 10 9 drop
			}
		}
	END
}

# without_tenths SIZE: of pieces of this size, all but every tenth.
without_tenths() {
	# One after the other they read the same file.
	while dd bs="$1" count=9 2>/dev/null && [ "$(dd bs="$1" count=1 2>/dev/null | wc -c)" != 0 ]; do :; done
}

# passed COUNT LEG: waits until so many packets have come out of the cable of this leg.
passed() {
	# shellcheck disable=SC2016 # The other shell's.
	ip netns exec far sh -c '
		tries=0
		until [ "$(cat "/sys/class/net/f$2/statistics/rx_packets")" -ge "$1" ]; do
			tries=$((tries + 1))
			[ $tries -lt 1000 ] || exit 1
			sleep 0.02
		done' sh "$1" "$2" || fails "not $1 packets within 20 s on leg $2"
}

# tidy: no cables, no rules, no programs.
tidy() {
	for leg in 1 2; do ip -n near link delete "n$leg" 2>/dev/null; done
	ip netns exec far nft delete table ip far 2>/dev/null
	for space in near far; do
		left=$(ip netns pids $space)
		# shellcheck disable=SC2086 # Numbers.
		[ -z "$left" ] || kill $left
	done
	wait
}

# legs LEG...: as options.
legs() {
	for leg in "$@"; do printf ' --leg 10.1.%s.2:5004' "$leg"; done
}

# receive ENGINE LEGS FILE [OPTION...]: a receiver in `far` that writes this file, until its sender says BYE or for half a
# minute nothing comes.
receive() {
	by=$1 on=$2 file=$3
	shift 3
	# shellcheck disable=SC2046,SC2086 # Words.
	ip netns exec far rtp_app rx --engine "$by" $(legs $on) --out "$file" --reorder 1000 --ring-order 13 \
		--idle-timeout 30 --json "$@" >report 2>>errors &
	receiver=$!
	waited=0
	until grep -q receiving errors || [ $waited = 400 ]; do
		sleep 0.05
		waited=$((waited + 1))
	done
}

# received: waits for the receiver, and whether it ended well.
received() {
	wait "$receiver" || fails "the receiver ended with $?"
}

# transmit ENGINE LEGS [OPTION...]: sends from `near`, and whether that ended well.
transmit() {
	by=$1 on=$2
	shift 2
	# shellcheck disable=SC2046,SC2086 # Words.
	ip netns exec near rtp_app tx --engine "$by" $(legs $on) "$@" >tx.errors 2>&1 ||
		fails "the sender ended with $?"
}

# figure NAME: of the stream, in the receiver's last report: those of the legs and the ring, some of which have the same
# names, come after them.
figure() {
	tail -n 1 report | sed 's/"legs":.*//' | grep -o "\"$1\":[0-9]*" | cut -d : -f 2
}

# figure_is NAME VALUE, figure_is_not NAME VALUE: whether a figure is there and as it should be.
figure_is() {
	[ "$(figure "$1")" = "$2" ] || fails "$1 is $(figure "$1"), not $2"
}

figure_is_not() {
	case $(figure "$1") in '' | "$2") fails "$1 is $(figure "$1")" ;; esac
}

# books: what was received is accounted for.
books() {
	ring=$(tail -n 1 report | sed 's/.*"ring":{\([^}]*\)}.*/\1/' | tr , '\n' | tr -d '"')
	sum=$(echo "$ring" | awk -F : '
		/^(published|dropped_ring_full|dropped_oversize|dropped_invalid|dropped_filtered|duplicate|late|staged):/ { sum += $2; n++ }
		$1 == "received" { received = $2 }
		END { print n == 8 && sum == received ? "balance" : "do not balance" }')
	[ "$sum" = balance ] || fails "the books $sum"
}

# wav FILE SAMPLES: makes a WAV file of samples of 24 bits, 48,000 a second, two channels.
wav() {
	size=$(stat -c %s "$2")
	{
		printf 'RIFF' && word $((size + 36)) 4 && printf 'WAVEfmt ' && word 16 4
		word 1 2 && word 2 2 && word 48000 4 && word 288000 4 && word 6 2 && word 24 2
		printf 'data' && word "$size" 4 && cat "$2"
	} >"$1"
}

# word VALUE BYTES: the least significant byte first.
word() {
	value=$1
	for _ in $(seq "$2"); do
		# shellcheck disable=SC2059 # The format is the byte.
		printf "\\$(printf %o $((value % 256)))"
		value=$((value / 256))
	done
}

# same_samples WAV SAMPLES: whether a WAV file ends with these and has no others.
same_samples() {
	size=$(stat -c %s "$2")
	tail -c "$size" "$1" | cmp - "$2" || return 1
	[ "$(tail -c $((size + 8)) "$1" | head -c 4)" = data ] || fails "$1: its samples are not $size bytes"
}
