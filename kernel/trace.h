/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Trace events: /sys/kernel/tracing/events/rtp_mgr/. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM rtp_mgr

#if !defined(RTP_MGR_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define RTP_MGR_TRACE_H

#include <linux/tracepoint.h>

DECLARE_EVENT_CLASS(rtp_mgr_packets,
	TP_PROTO(u64 stream, u64 position, u64 packets),
	TP_ARGS(stream, position, packets),
	TP_STRUCT__entry(
		__field(u64, stream)
		__field(u64, position)
		__field(u64, packets)
	),
	TP_fast_assign(
		__entry->stream = stream;
		__entry->position = position;
		__entry->packets = packets;
	),
	TP_printk("stream=%llu position=%llu packets=%llu",
		  __entry->stream, __entry->position, __entry->packets)
);

/* Packets became visible to readers. */
DEFINE_EVENT(rtp_mgr_packets, rtp_mgr_publish,
	TP_PROTO(u64 stream, u64 position, u64 packets),
	TP_ARGS(stream, position, packets));

/* Packets were dropped because the ring was full. */
DEFINE_EVENT(rtp_mgr_packets, rtp_mgr_drop,
	TP_PROTO(u64 stream, u64 position, u64 packets),
	TP_ARGS(stream, position, packets));

/* A reader was woken. */
TRACE_EVENT(rtp_mgr_wake,
	TP_PROTO(u64 stream, u32 reader, u64 position),
	TP_ARGS(stream, reader, position),
	TP_STRUCT__entry(
		__field(u64, stream)
		__field(u64, position)
		__field(u32, reader)
	),
	TP_fast_assign(
		__entry->stream = stream;
		__entry->position = position;
		__entry->reader = reader;
	),
	TP_printk("stream=%llu reader=%u position=%llu",
		  __entry->stream, __entry->reader, __entry->position)
);

/* A packet, or a whole train, was taken before the UDP code. */
TRACE_EVENT(rtp_mgr_early,
	TP_PROTO(u16 port),
	TP_ARGS(port),
	TP_STRUCT__entry(
		__field(u16, port)
	),
	TP_fast_assign(
		__entry->port = port;
	),
	TP_printk("port=%u", __entry->port)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
