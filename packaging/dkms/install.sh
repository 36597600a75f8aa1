#!/bin/sh
# install.sh [KERNEL-RELEASE]: gives the module to DKMS, builds and installs it for a kernel (the running
# one). RTP_MGR_KDIR=DIRECTORY: the kernel's build directory, where it is not the usual one.
# install.sh --undo: takes the module from DKMS, for all kernels. Safe to run again.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/Cargo.toml" | head -n 1)
place=/usr/src/rtp_mgr-$version

fail() {
	echo "install.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "needs root: sudo $0 $*"
command -v dkms >/dev/null || fail "dkms is not installed (Debian: apt-get install dkms)"

known() {
	dkms status -m rtp_mgr -v "$version" 2>/dev/null | grep -q rtp_mgr
}

if known; then
	dkms remove -m rtp_mgr -v "$version" --all
fi
rm -rf "$place"
if [ "${1:-}" = --undo ]; then
	echo "rtp_mgr $version is no longer in DKMS; a loaded module stays loaded (scripts/unload.sh)"
	exit 0
fi

release=${1:-$(uname -r)}
mkdir -p "$place/ring"
# Only sources: what a build left behind is not another kernel's.
(cd "$here" && find kernel ring/src \( -name tests -prune \) -o -type f \
	\( -name '*.rs' -o -name '*.[ch]' -o -name '*.sh' -o -name Makefile -o -name Kbuild \) \
	! -name '*.mod.c' -print) | while read -r file; do
	install -D -m 0644 "$here/$file" "$place/$file"
done
sed "s/@VERSION@/$version/" "$here/packaging/dkms/dkms.conf" >"$place/dkms.conf"
dkms add -m rtp_mgr -v "$version"
dkms install -m rtp_mgr -v "$version" -k "$release" ||
	fail "not built for $release: $(sed -n 's/^rtp_mgr: //p' \
		"/var/lib/dkms/rtp_mgr/$version/build/make.log" 2>/dev/null | tail -n 1)"
echo "rtp_mgr $version is installed for $release: modprobe rtp_mgr loads it"
