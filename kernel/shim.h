/* SPDX-License-Identifier: MIT OR GPL-2.0 */
#ifndef RTP_MGR_SHIM_H
#define RTP_MGR_SHIM_H

#include <linux/cred.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/skbuff.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>

void rtp_mgr_lock_init(spinlock_t *lock);
void rtp_mgr_lock(spinlock_t *lock);
void rtp_mgr_unlock(spinlock_t *lock);
void rtp_mgr_softirq_lock(spinlock_t *lock);
void rtp_mgr_softirq_unlock(spinlock_t *lock);
void rtp_mgr_wait_init(wait_queue_head_t *queue);
void rtp_mgr_wait_register(struct file *file, wait_queue_head_t *queue, poll_table *table);
void rtp_mgr_wait_wake(wait_queue_head_t *queue, __poll_t events);
const struct cred *rtp_mgr_swap_creds(const struct cred *creds);
int rtp_mgr_page_holders(const struct page *page);
struct page *rtp_mgr_block_new(unsigned int order);
void *rtp_mgr_block_start(struct page *block);
void rtp_mgr_block_put(struct page *block);
void rtp_mgr_cond_resched(void);
int rtp_mgr_udp_may_send(struct socket *socket);
int rtp_mgr_udp_send_buffer(struct socket *socket);
bool rtp_mgr_udp_takes_pieces(struct socket *socket);
bool rtp_mgr_udp_is_corked(struct socket *socket);
int rtp_mgr_fill(struct sk_buff *skb, struct iov_iter *from, size_t length);
void rtp_mgr_trace_publish(u64 stream, u64 head, u64 packets);
void rtp_mgr_trace_drop(u64 stream, u64 head, u64 packets);
void rtp_mgr_trace_wake(u64 stream, u32 reader, u64 head);

struct sock;

/*
 * A packet of a leg, as the socket would have received it. The same in source/udp.rs; up to the family `Flow` of
 * ring/src/table.rs.
 */
struct rtp_mgr_arrival {
	u8 source[16];		/* IPv4: in the first four bytes, then zeros */
	u8 destination[16];
	u16 source_port;	/* host order */
	u16 destination_port;
	u8 family;		/* 4 or 6 */
	u8 reserved;
	u32 len;		/* bytes after the UDP header */
	u32 more;		/* not 0: the next packet of its train comes right after it */
	u64 time_ns;		/* CLOCK_REALTIME of its arrival; 0: not known */
	const u8 *bytes;	/* its bytes, if they are in one piece; else NULL */
};

/* Bytes of a packet that tell what it is. */
#define RTP_MGR_HEAD 20

struct rtp_mgr_watch;

/* What the user data of an adopted socket begins with. The same in source/udp.rs. */
struct rtp_mgr_port {
	struct rtp_mgr_watch *watch;
	const u64 *state;	/* the stream's state word */
	bool leaves_others;	/* it leaves RTP of others to the socket: a train may hold both */
};

/* The state in which it takes packets. */
#define RTP_MGR_RUNNING 2

struct rtp_mgr_watch *rtp_mgr_watch_new(struct sock *sk);
void rtp_mgr_watch_free(struct rtp_mgr_watch *watch);
int rtp_mgr_udp_check(struct sock *sk);
int rtp_mgr_udp_adopt(struct sock *sk, void *port);
void rtp_mgr_udp_release(struct sock *sk);
void rtp_mgr_udp_forget(struct sock *sk, void *port);
void rtp_mgr_udp_figures(struct sock *sk, u32 *drops, u32 *buffer);
const u8 *rtp_mgr_piece(const struct sk_buff *skb, u32 offset, u32 *len);
void rtp_mgr_udp_free(struct sk_buff *skb);
bool rtp_mgr_udp_accept(struct sock *sk, struct sk_buff *skb, struct rtp_mgr_arrival *arrival);

/* In source/udp.rs. */
int rtp_mgr_udp_packet(const void *port, struct sock *sk, struct sk_buff *skb, const u8 *head, u32 len,
		       bool early);
int rtp_mgr_udp_take(const void *port, struct sk_buff *skb, const void *ip, const void *udp, u64 time_ns);
int rtp_mgr_udp_train(const void *port, struct sock *sk, struct sk_buff *skb, u32 size);
bool rtp_mgr_udp_is_rtp(struct sk_buff *skb, u32 offset, u32 len, u32 size);

#endif
