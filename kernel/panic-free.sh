#!/bin/sh
# SPDX-License-Identifier: MIT OR GPL-2.0
# panic-free.sh OBJECT: fails when it refers to the panic functions of core. A Rust panic in the kernel is
# a crash.
refers=$(${NM:-nm} --undefined-only "$1" | grep -E 'core9panicking|rust_begin_unwind|6option13(unwrap|expect)_failed|6result13unwrap_failed|slice5index.*fail')
[ -z "$refers" ] && exit 0
echo "rtp_mgr: $1 can panic:" >&2
echo "$refers" >&2
exit 1
