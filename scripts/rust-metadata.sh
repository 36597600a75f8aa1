#!/bin/sh
# rust-metadata.sh [KERNEL-RELEASE]: adds to the installed header package of a Debian kernel (the running
# one) the Rust metadata that the package leaves out, so that `make -C kernel` and DKMS can build the
# module. Built from the matching linux-source package; takes some minutes and 3 GB in TMPDIR (/var/tmp).
# Safe to run again; --force builds it anew. Removing the header package leaves the few files behind.
set -eu

fail() {
	echo "rust-metadata.sh: $*" >&2
	exit 1
}

force=
if [ "${1:-}" = --force ]; then
	force=yes
	shift
fi
release=${1:-$(uname -r)}
headers=/usr/src/linux-headers-$release
series=$(echo "$release" | sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p')
source=/usr/src/linux-source-$series.tar.xz

[ -e "$headers/.config" ] || fail "no headers of $release: apt-get install linux-headers-$release"
grep -q '^CONFIG_RUST=y' "$headers/.config" ||
	fail "$release is built without Rust (CONFIG_RUST): the module cannot be built for it"
if [ -e "$headers/rust/libkernel.rmeta" ] && [ -e "$headers/scripts/target.json" ] && [ -z "$force" ]; then
	echo "$headers has its Rust metadata already"
	exit 0
fi
[ "$(id -u)" = 0 ] || fail "needs root: sudo $0 $*"
[ -e "$source" ] || fail "no $source: apt-get install linux-source-$series"
for package in linux-source-$series linux-headers-$release; do
	version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null) || fail "$package is not installed"
	[ "$version" = "${first:=$version}" ] ||
		fail "linux-source-$series is $first, and $package is $version: they must be the same"
done
wanted=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"$/\1/p' "$headers/.config")
[ "$wanted" = "$(rustc --version 2>/dev/null)" ] ||
	fail "$release was built by $wanted, and rustc here is $(rustc --version 2>/dev/null || echo missing)"
for tool in bindgen make gcc flex bison bc; do
	command -v $tool >/dev/null || fail "$tool is missing: apt-get install rust-src bindgen make gcc" \
		"flex bison bc libelf-dev libssl-dev python3"
done

work=$(mktemp -d "${TMPDIR:-/var/tmp}/rtp_mgr-metadata-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
echo "building the Rust metadata of $release in $work"
mkdir "$work/source" "$work/out"
tar -xJf "$source" -C "$work/source" --strip-components=1
cp "$headers/.config" "$work/out/.config"
run() {
	make -C "$work/source" O="$work/out" LOCALVERSION="+${release#*+}" "$@" >"$work/log" 2>&1 ||
		fail "make $* failed: $(tail -n 5 "$work/log")"
}
run olddefconfig
run "-j$(nproc)" modules_prepare
[ "$(cat "$work/out/include/config/kernel.release")" = "$release" ] ||
	fail "the source is of $(cat "$work/out/include/config/kernel.release"), not of $release"
install -D -m 0644 -t "$headers/rust" "$work"/out/rust/*.rmeta "$work"/out/rust/*.so
install -m 0644 -t "$headers/scripts" "$work/out/scripts/target.json"
echo "$headers has its Rust metadata"
