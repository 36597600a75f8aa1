#!/bin/sh
# setup.sh [USER...]: makes the group rtp_mgr, gives it the device by a udev rule, and adds the users.
# setup.sh --undo: takes the rule away again; the group stays, as files may belong to it.
# Safe to run again.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
rule=/etc/udev/rules.d/60-rtp_mgr.rules

fail() {
	echo "setup.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "needs root: sudo $0 $*"

reload() {
	if command -v udevadm >/dev/null; then
		udevadm control --reload || true
		udevadm trigger --subsystem-match=rtp_mgr || true
	fi
}

if [ "${1:-}" = --undo ]; then
	rm -f "$rule"
	reload
	echo "the udev rule is gone; the group rtp_mgr stays (groupdel rtp_mgr removes it)"
	exit 0
fi

for user in "$@"; do
	id "$user" >/dev/null 2>&1 || fail "there is no user $user; nothing was changed"
done
getent group rtp_mgr >/dev/null || groupadd --system rtp_mgr
install -D -m 0644 "$here/packaging/udev/60-rtp_mgr.rules" "$rule"
for user in "$@"; do
	usermod -a -G rtp_mgr "$user"
	echo "$user is in the group rtp_mgr from the next login on"
done
reload
echo "/dev/rtp_mgr belongs to the group rtp_mgr whenever the module is loaded"
