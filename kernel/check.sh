#!/bin/sh
# SPDX-License-Identifier: MIT OR GPL-2.0
# check.sh KDIR: says in one sentence why the module cannot be built there, if it cannot.
kdir=$1

fail() {
	echo "rtp_mgr: $*" >&2
	exit 1
}

[ -e "$kdir/Makefile" ] ||
	fail "no kernel build directory at $kdir: install the headers of this kernel, or give KDIR=..."
config=$kdir/include/config/auto.conf
[ -e "$config" ] || fail "$kdir is not configured: there is no include/config/auto.conf"
grep -q '^CONFIG_RUST=y' "$config" ||
	fail "the kernel of $kdir is built without Rust (CONFIG_RUST): use the embedded engine instead"
[ -e "$kdir/rust/libkernel.rmeta" ] ||
	fail "$kdir has no Rust metadata (rust/libkernel.rmeta): the header package leaves it out." \
	     "Build it with 'make modules_prepare' (see docs/BUILD-DEPLOY-GUIDE.md)"
wanted=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\{0,1\}rustc \([^ "]*\).*/\1/p' "$config")
found=$(${RUSTC:-rustc} --version 2>/dev/null | sed -n 's/^rustc \([^ ]*\).*/\1/p')
[ -z "$wanted" ] || [ "$wanted" = "$found" ] ||
	fail "this kernel was built by rustc $wanted, and ${RUSTC:-rustc} is ${found:-not there}:" \
	     "give RUSTC=... of exactly that version"
