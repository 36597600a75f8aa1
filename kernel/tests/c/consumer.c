// SPDX-License-Identifier: MIT
/*
 * A consumer written in C against include/rtp_mgr.h and docs/abi.md alone: opens the device, makes a
 * stream of the simulated DMA engine, maps its parts, takes bursts out of the ring and checks every
 * byte. `cargo xtask vm test` runs it in the virtual machine; results in the kernel's test format
 * (KTAP).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rtp_mgr.h"

/* The header says the numbers; this is how the rest of the world makes them. */
#define SAME(name, number, argument)                                                          \
	_Static_assert(RTP_MGR_IOC_##name ==                                                  \
			       _IOWR(RTP_MGR_IOCTL_MAGIC, number, struct rtp_mgr_##argument), \
		       #name)
SAME(VERSION, 1, version);
SAME(CREATE, 2, create);
SAME(ATTACH, 3, attach);
SAME(ADD_LEG, 4, add_leg);
SAME(START, 5, plain);
SAME(STOP, 6, plain);
SAME(STATS, 7, stats);
SAME(RESET_STATS, 8, plain);
SAME(SET, 9, setting);
SAME(GET, 10, setting);
SAME(KICK, 11, plain);
SAME(LIST, 12, list);
SAME(HEARD, 13, heard);

enum { PACKET_LEN = 200, BURST = 32, PACKETS = 10 * BURST, LIMIT_MS = 20000 };

struct stream {
	int fd;
	struct rtp_mgr_header header;
	const unsigned char *status;
	unsigned char *control;
	const struct rtp_mgr_descriptor *descriptors;
	const unsigned char *slots;
	uint64_t next;
};

#define CHECK(condition)                                                                    \
	do {                                                                                \
		if (!(condition)) {                                                         \
			printf("# %s:%d: %s (errno %d)\n", __func__, __LINE__, #condition, errno); \
			return false;                                                       \
		}                                                                           \
	} while (0)

/* One word that the module writes. */
static uint64_t load(const struct stream *stream, size_t offset)
{
	return __atomic_load_n((const uint64_t *)(stream->status + offset), __ATOMIC_ACQUIRE);
}

static void store(struct stream *stream, size_t offset, uint64_t value)
{
	__atomic_store_n((uint64_t *)(stream->control + offset), value, __ATOMIC_RELEASE);
}

static bool the_versions_agree(struct stream *stream)
{
	struct rtp_mgr_version version = { .size = sizeof(version) };

	stream->fd = open("/dev/rtp_mgr", O_RDWR | O_CLOEXEC);
	CHECK(stream->fd >= 0);
	CHECK(ioctl(stream->fd, RTP_MGR_IOC_VERSION, &version) == 0);
	CHECK(version.abi_major == RTP_MGR_ABI_MAJOR);
	CHECK(version.features & RTP_MGR_FEATURE_SIMULATED);
	return true;
}

static bool a_number_out_of_range_is_refused(struct stream *stream)
{
	struct rtp_mgr_create create = {
		.size = sizeof(create),
		.direction = RTP_MGR_DIRECTION_RECEIVE,
		.source = RTP_MGR_SOURCE_SIMULATED,
		.ring_order = RTP_MGR_RING_ORDER_MAX + 1,
	};

	CHECK(ioctl(stream->fd, RTP_MGR_IOC_CREATE, &create) == -1);
	CHECK(errno == EINVAL);
	return true;
}

static void *map(const struct stream *stream, uint64_t offset, uint64_t len, int protection)
{
	return mmap(NULL, len, protection, MAP_SHARED, stream->fd, (off_t)offset);
}

static bool a_stream_is_made_and_mapped(struct stream *stream)
{
	struct rtp_mgr_create create = {
		.size = sizeof(create),
		.direction = RTP_MGR_DIRECTION_RECEIVE,
		.source = RTP_MGR_SOURCE_SIMULATED,
		.pattern = RTP_MGR_PATTERN_RAW,
		.packet_len = PACKET_LEN,
		.burst = BURST,
		.reader = RTP_MGR_READER_RELIABLE,
		.interval_ns = 10 * 1000 * 1000,
	};
	struct rtp_mgr_header *header = &stream->header;
	long page = sysconf(_SC_PAGESIZE);
	void *first;

	CHECK(ioctl(stream->fd, RTP_MGR_IOC_CREATE, &create) == 0);
	CHECK(create.reader_index != RTP_MGR_NO_READER);
	/* The header stands at the beginning and says where the rest is. */
	first = map(stream, 0, (uint64_t)page, PROT_READ);
	CHECK(first != MAP_FAILED);
	memcpy(header, first, sizeof(*header));
	CHECK(munmap(first, (size_t)page) == 0);
	CHECK(header->magic == RTP_MGR_MAGIC);
	CHECK(header->abi_major == RTP_MGR_ABI_MAJOR);
	CHECK(header->header_len >= sizeof(*header));
	CHECK(header->total_len == create.total_len);
	CHECK(header->engine == RTP_MGR_ENGINE_KERNEL);
	CHECK(header->stream_id == create.id);
	CHECK(header->slot_count == 1u << RTP_MGR_RING_ORDER_DEFAULT);
	CHECK(header->desc_stride == sizeof(struct rtp_mgr_descriptor));

	stream->status = map(stream, header->status_offset, header->status_len, PROT_READ);
	CHECK(stream->status != MAP_FAILED);
	stream->control =
		map(stream, header->control_offset, (uint64_t)page, PROT_READ | PROT_WRITE);
	CHECK(stream->control != MAP_FAILED);
	stream->descriptors = map(stream, header->desc_offset, header->desc_len, PROT_READ);
	CHECK(stream->descriptors != MAP_FAILED);
	stream->slots = map(stream, header->slots_offset, header->slots_len, PROT_READ);
	CHECK(stream->slots != MAP_FAILED);
	stream->next = load(stream, RTP_MGR_STATUS_HEAD);
	return true;
}

/* Word `index` of packet `number` of the pattern. */
static uint64_t pattern(uint64_t number, uint64_t index)
{
	const uint64_t step = 0x9e3779b97f4a7c15;
	uint64_t mixed = (number + index * step) * step;

	return index == 0 ? number : mixed ^ mixed >> 29;
}

/* Waits until `count` positions are there. */
static bool wait_for(struct stream *stream, uint64_t count)
{
	struct pollfd readable = { .fd = stream->fd, .events = POLLIN };

	store(stream, RTP_MGR_CONTROL_WAKE_AT, stream->next + count);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	while (load(stream, RTP_MGR_STATUS_HEAD) - stream->next < count) {
		CHECK(poll(&readable, 1, LIMIT_MS) == 1);
		CHECK(readable.revents & POLLIN);
	}
	return true;
}

static bool bursts_are_consumed_in_place(struct stream *stream)
{
	struct rtp_mgr_plain plain = { .size = sizeof(plain) };
	const struct rtp_mgr_header *header = &stream->header;

	CHECK(ioctl(stream->fd, RTP_MGR_IOC_START, &plain) == 0);
	for (uint64_t taken = 0; taken < PACKETS; taken++) {
		const struct rtp_mgr_descriptor *descriptor;
		const unsigned char *packet;

		if (load(stream, RTP_MGR_STATUS_HEAD) == stream->next)
			CHECK(wait_for(stream, 1));
		descriptor = &stream->descriptors[stream->next & (header->slot_count - 1)];
		CHECK(descriptor->flags & RTP_MGR_FLAG_RAW);
		CHECK(descriptor->sequence == taken);
		CHECK(descriptor->len == PACKET_LEN);
		CHECK(descriptor->slot < header->slot_total);
		packet = stream->slots + (size_t)descriptor->slot * header->slot_stride;
		for (uint64_t index = 0; index < PACKET_LEN / 8; index++) {
			uint64_t word;

			memcpy(&word, packet + index * 8, sizeof(word));
			CHECK(word == pattern(taken, index));
		}
		stream->next++;
		store(stream, RTP_MGR_CONTROL_TAIL, stream->next);
	}
	CHECK(ioctl(stream->fd, RTP_MGR_IOC_STOP, &plain) == 0);
	return true;
}

static bool the_books_balance(struct stream *stream)
{
	struct rtp_mgr_stats stats = { .size = sizeof(stats) };
	struct rtp_mgr_counters books;

	CHECK(ioctl(stream->fd, RTP_MGR_IOC_STATS, &stats) == 0);
	CHECK(stats.state == RTP_MGR_STATE_STOPPED);
	_Static_assert(sizeof(books) == sizeof(stats.counters), "the counters' words");
	memcpy(&books, stats.counters, sizeof(books));
	CHECK(books.published >= PACKETS);
	CHECK(books.dropped_ring_full == 0);
	CHECK(books.received == books.published + books.dropped_oversize + books.dropped_invalid +
					books.dropped_filtered + books.duplicate + books.late +
					books.staged);
	return true;
}

static bool closing_ends_the_stream(struct stream *stream)
{
	struct rtp_mgr_list list = { .size = sizeof(list),
				     .entry_size = sizeof(struct rtp_mgr_list_entry) };
	const struct rtp_mgr_header *header = &stream->header;
	int other = open("/dev/rtp_mgr", O_RDWR | O_CLOEXEC);

	CHECK(other >= 0);
	CHECK(ioctl(other, RTP_MGR_IOC_LIST, &list) == 0);
	CHECK(list.count == 1);
	CHECK(close(stream->fd) == 0);
	/* A mapping keeps its file, and so the stream, alive. */
	CHECK(ioctl(other, RTP_MGR_IOC_LIST, &list) == 0);
	CHECK(list.count == 1);
	CHECK(munmap((void *)stream->status, header->status_len) == 0);
	CHECK(munmap(stream->control, (size_t)sysconf(_SC_PAGESIZE)) == 0);
	CHECK(munmap((void *)stream->descriptors, header->desc_len) == 0);
	CHECK(munmap((void *)stream->slots, header->slots_len) == 0);
	CHECK(ioctl(other, RTP_MGR_IOC_LIST, &list) == 0);
	CHECK(list.count == 0);
	CHECK(close(other) == 0);
	return true;
}

/* Each builds on those before it. */
#define TEST(name) { #name, name }
static const struct {
	const char *name;
	bool (*run)(struct stream *stream);
} tests[] = {
	TEST(the_versions_agree),
	TEST(a_number_out_of_range_is_refused),
	TEST(a_stream_is_made_and_mapped),
	TEST(bursts_are_consumed_in_place),
	TEST(the_books_balance),
	TEST(closing_ends_the_stream),
};

int main(void)
{
	const size_t count = sizeof(tests) / sizeof(tests[0]);
	struct stream stream = { .fd = -1 };

	printf("KTAP version 1\n1..%zu\n", count);
	for (size_t index = 0; index < count; index++) {
		bool good = tests[index].run(&stream);

		printf("%s %zu c::%s\n", good ? "ok" : "not ok", index + 1, tests[index].name);
		/* What follows has nothing to stand on: it stays without a result, which counts. */
		if (!good)
			return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
