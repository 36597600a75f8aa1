#!/bin/sh
# peers.sh [FILTER...]: FFmpeg and GStreamer send to the kernel engine and receive from it, between two network
# namespaces. The disk with the peers is the machine's.
# shellcheck source=/dev/null # Where the machine has it.
. /bin/namespaces.sh

# The port of the streams, as /proc/net/udp has it.
port=138C

prepare() {
	mkdir -p /peers
	tries=0
	until mount -t ext4 -o ro /dev/nvme0n1 /peers 2>/dev/null; do
		tries=$((tries + 1))
		if [ $tries = 100 ]; then
			echo "Bail out! There is no disk with FFmpeg and GStreamer: cargo xtask vm run --peers"
			exit 1
		fi
		sleep 0.1
	done
	export PATH="$PATH:/peers/bin" LD_LIBRARY_PATH=/peers/lib GST_PLUGIN_PATH=/peers/plugins
	export GST_REGISTRY="$PWD/registry" GST_REGISTRY_FORK=no
	cp /peers/media/programme.ts .
	# Half a second of small packets takes more room than the usual.
	echo 4194304 >/proc/sys/net/core/rmem_default
	# Half a second of noise.
	head -c 144000 /dev/urandom >samples
	wav sound.wav samples
	# As it is on the network: the most significant byte first.
	peer_of near ffmpeg -nostdin -v error -i sound.wav -f s24be -c:a pcm_s24be samples.be
	peer_of near ffmpeg -nostdin -v error -i programme.ts -map 0 -c copy -f framemd5 frames
	description video "33 MP2T/90000" >programme.sdp
	description audio "97 L24/48000/2" >sound.sdp
}

# peer_of NAMESPACE PROGRAM...: ends it when it takes too long.
peer_of() {
	space=$1
	shift
	ip netns exec "$space" timeout 60 "$@" >>errors 2>&1
}

# description MEDIA FORMAT: a session description (RFC 8866).
description() {
	printf '%s\r\n' v=0 "o=- 0 0 IN IP4 10.1.1.1" s=- "c=IN IP4 10.1.1.2" "t=0 0" \
		"m=$1 5004 RTP/AVP ${2%% *}" "a=rtpmap:$2" a=recvonly
}

# send PEER WHAT
send() {
	case $1-$2 in
	ffmpeg-programme)
		peer_of near ffmpeg -nostdin -v warning -f mpegtsraw -i programme.ts -map 0 -c copy \
			-f rtp "udp://10.1.1.2:5004?pkt_size=1328&bitrate=2000000"
		;;
	ffmpeg-sound)
		peer_of near ffmpeg -nostdin -v warning -re -i sound.wav -c:a pcm_s24be -f rtp -payload_type 97 \
			"rtp://10.1.1.2:5004?pkt_size=300"
		;;
	gstreamer-programme)
		peer_of near gst-launch-1.0 -q filesrc location=programme.ts blocksize=1316 ! \
			video/mpegts,systemstream=true,packetsize=188 ! rtpmp2tpay ! \
			udpsink host=10.1.1.2 port=5004 max-bitrate=2000000
		;;
	gstreamer-sound)
		peer_of near gst-launch-1.0 -q filesrc location=sound.wav ! wavparse ! \
			audioconvert dithering=none noise-shaping=none ! \
			rtpL24pay pt=97 min-ptime=1000000 max-ptime=1000000 ! udpsink host=10.1.1.2 port=5004
		;;
	esac || fails "$1 ended with $?"
}

# listen PEER WHAT PACKETS: a peer in `far` that writes out, until BYE, or, GStreamer, until it has so many packets.
listen() {
	caps="application/x-rtp,payload"
	case $1-$2 in
	ffmpeg-*)
		[ "$2" = programme ] && muxer=framemd5 || muxer=s24be
		peer_of far ffmpeg -nostdin -v warning -protocol_whitelist file,udp,rtp -i "$2.sdp" \
			-map 0 -c copy -f "$muxer" out &
		;;
	gstreamer-programme)
		caps="$caps=33,media=video,clock-rate=90000,encoding-name=MP2T"
		peer_of far gst-launch-1.0 -q udpsrc address=10.1.1.2 port=5004 num-buffers="$3" caps="$caps" ! \
			rtpjitterbuffer latency=500 ! rtpmp2tdepay ! filesink location=out &
		;;
	gstreamer-sound)
		caps="$caps=97,media=audio,clock-rate=48000,encoding-name=L24,channels=2"
		peer_of far gst-launch-1.0 -q udpsrc address=10.1.1.2 port=5004 num-buffers="$3" caps="$caps" ! \
			rtpjitterbuffer latency=500 ! rtpL24depay ! filesink location=out &
		;;
	esac
	# shellcheck disable=SC2034 # For `received`.
	receiver=$!
	waited=0
	until ip netns exec far grep -q ":$port " /proc/net/udp; do
		waited=$((waited + 1))
		[ $waited -lt 600 ] || fails "$1 does not listen after a minute" || return 1
		sleep 0.1
	done
}

# packets WHAT: how many of RTP it is, except that FFmpeg sends the sound in packets as it likes.
packets() {
	if [ "$1" = programme ]; then echo $(($(stat -c %s programme.ts) / 1316)); else echo 500; fi
}

# effect WHAT EFFECT: netem's words for it. A few packets overtake those of 20 ms, by number: never the first, which all
# behind would be late after, and not the BYE at the end (157 packets of RTP, or 500, and some of RTCP).
effect() {
	case $1-$2 in
	programme-reordered) echo delay 20ms reorder 100% gap 60 ;;
	sound-reordered) echo delay 20ms reorder 100% gap 110 ;;
	esac
}

# to_kernel PEER WHAT [EFFECT]: a peer sends, the kernel engine restores the bytes.
to_kernel() {
	# shellcheck disable=SC2046 # Words.
	cable 1 $(effect "$2" "$3") || return 1
	[ "$2" = programme ] && out=out.ts || out=out.wav
	[ "$2" = programme ] && options= || options="--format L24/48000/2"
	# It says no BYE.
	[ "$1" = ffmpeg ] || options="$options --count $(packets "$2")"
	# shellcheck disable=SC2086 # Words.
	receive kernel 1 $out $options
	send "$1" "$2" && received && books && figure_is lost 0 && figure_is late 0 || return 1
	[ "$3" != reordered ] || figure_is_not reordered 0 || return 1
	if [ "$2" = programme ]; then cmp out.ts programme.ts; else same_samples out.wav samples; fi
}

# with_loss PEER: every tenth packet is lost, and the rest is restored.
with_loss() {
	# RTCP, which FFmpeg sends to the same port, is left alone.
	cable 1 && lose_tenths "@th,72,8 < 192" || return 1
	packets=$(packets programme)
	came=$((packets - packets / 10))
	[ "$1" = ffmpeg ] && options= || options="--count $came"
	# shellcheck disable=SC2086 # Words.
	receive kernel 1 out.ts $options
	send "$1" programme && received && books || return 1
	without_tenths 1316 <programme.ts >kept
	# Of a loss after the last that came nothing is known.
	lost=$(((packets - 1) / 10))
	figure_is packets $came && figure_is lost $lost && cmp out.ts kept
}

# hold_bye, say_bye: FFmpeg looks for RTCP first, so that a BYE cuts off what still waits in its socket; it gets one when
# nothing does.
hold_bye() {
	ip netns exec far nft "add table ip far
		add chain ip far in { type filter hook prerouting priority raw; }
		add rule ip far in udp dport 5005 drop"
}

say_bye() {
	waited=0
	# Addresses, state, then what waits to be sent and to be read.
	until ip netns exec far grep ":$port " /proc/net/udp | grep -q ' [0-9A-F]*:00000000 '; do
		waited=$((waited + 1))
		[ $waited -lt 300 ] || fails "FFmpeg reads nothing" || return 1
		sleep 0.1
	done
	ip netns exec far nft delete table ip far
	printf '\201\313\000\001\000\000\000\001' | ip netns exec near nc -u -w 1 10.1.1.2 5005
	return 0
}

# from_kernel PEER WHAT [EFFECT]: the kernel engine sends, a peer restores the bytes.
from_kernel() {
	# shellcheck disable=SC2046 # Words.
	cable 1 $(effect "$2" "$3") || return 1
	[ "$2" = programme ] && input=programme.ts || input=sound.wav
	listen "$1" "$2" "$(packets "$2")" || return 1
	[ "$1" = gstreamer ] || hold_bye
	transmit kernel 1 --input "$input" || return 1
	[ "$1" = gstreamer ] || say_bye || return 1
	received || return 1
	case $1-$2 in
	ffmpeg-programme) same_frames ;;
	gstreamer-programme) cmp out programme.ts ;;
	*) cmp out samples.be ;;
	esac
}

# same_frames: size and checksum of every frame are those of the file; its times begin elsewhere, and of each stream the
# last three may be missing, which FFmpeg keeps for itself when its input ends.
same_frames() {
	for track in 0 1; do
		for list in frames out; do
			grep "^$track," $list | tr -d ' ' | cut -d , -f 5,6 >"out.$list"
		done
		count=$(wc -l <out.out)
		[ $((count + 3)) -ge "$(wc -l <out.frames)" ] || fails "$count frames of track $track" || return 1
		head -n "$count" out.frames | cmp - out.out || return 1
	done
}

for peer in ffmpeg gstreamer; do
	for what in programme sound; do
		case_of "${peer}_to_kernel_${what}_bit_for_bit" to_kernel $peer $what
		case_of "kernel_to_${peer}_${what}_restored" from_kernel $peer $what
	done
	case_of "${peer}_with_loss_the_rest_bit_for_bit" with_loss $peer
done
case_of ffmpeg_reordered_to_kernel_bit_for_bit to_kernel ffmpeg programme reordered
case_of gstreamer_reordered_to_kernel_bit_for_bit to_kernel gstreamer sound reordered
case_of kernel_reordered_to_ffmpeg_restored from_kernel ffmpeg sound reordered
case_of kernel_reordered_to_gstreamer_restored from_kernel gstreamer programme reordered

run_cases peers "$@"
