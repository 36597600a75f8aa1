// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * What the kernel's Rust API does not have (7.3), and nothing else. Each function says why it is here.
 */
#include <linux/cred.h>
#include <linux/filter.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/udp.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/sock.h>
#include <net/tcp_states.h>
#include <net/udp.h>
#include <net/udp_tunnel.h>

#define CREATE_TRACE_POINTS
#include "trace.h"

#include "shim.h"

/* Rust's SpinLock has no variant that keeps bottom halves off, and timers run in one. */
void rtp_mgr_lock_init(spinlock_t *lock)
{
	spin_lock_init(lock);
}

void rtp_mgr_lock(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

void rtp_mgr_unlock(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

/* The same where bottom halves are off already: inline functions. */
void rtp_mgr_softirq_lock(spinlock_t *lock)
{
	spin_lock(lock);
}

void rtp_mgr_softirq_unlock(spinlock_t *lock)
{
	spin_unlock(lock);
}

/* A macro with a lock class of its own. Rust's PollCondVar waits for RCU whenever one is dropped. */
void rtp_mgr_wait_init(wait_queue_head_t *queue)
{
	init_waitqueue_head(queue);
}

/* poll_wait() is an inline function whose barriers belong to it. */
void rtp_mgr_wait_register(struct file *file, wait_queue_head_t *queue, poll_table *table)
{
	poll_wait(file, queue, table);
}

/* wq_has_sleeper() and wake_up_poll() are an inline function and a macro. */
void rtp_mgr_wait_wake(wait_queue_head_t *queue, __poll_t events)
{
	wake_up_poll(queue, events);
}

/* override_creds() and revert_creds(), which are the same, are inline functions. */
const struct cred *rtp_mgr_swap_creds(const struct cred *creds)
{
	return override_creds(creds);
}

/* page_count() is an inline function, and struct page opaque to Rust. `address` is of a vmalloc allocation. */
int rtp_mgr_page_holders(const void *address)
{
	return page_count(vmalloc_to_page(address));
}

/* A macro. */
void rtp_mgr_cond_resched(void)
{
	cond_resched();
}

/* struct sock is opaque to Rust: whether this is a UDP socket with a destination. */
int rtp_mgr_udp_may_send(struct socket *socket)
{
	const struct sock *sk = socket->sk;

	if (!sk || !sk_is_udp(sk))
		return -EINVAL;
	if (READ_ONCE(sk->sk_state) != TCP_ESTABLISHED)
		return -ENOTCONN;
	return 0;
}

/* As above: bytes that may wait in the socket. */
int rtp_mgr_udp_send_buffer(struct socket *socket)
{
	return READ_ONCE(socket->sk->sk_sndbuf);
}

/* As above: whether sends are collected, for which the socket's lock is held while waiting for space. */
bool rtp_mgr_udp_is_corked(struct socket *socket)
{
	const struct sock *sk = socket->sk;

	return READ_ONCE(udp_sk(sk)->pending) || udp_test_bit(CORK, sk);
}

/* Tracepoints cannot be declared in Rust outside the kernel's tree. */
void rtp_mgr_trace_publish(u64 stream, u64 head, u64 packets)
{
	trace_rtp_mgr_publish(stream, head, packets);
}

void rtp_mgr_trace_drop(u64 stream, u64 head, u64 packets)
{
	trace_rtp_mgr_drop(stream, head, packets);
}

void rtp_mgr_trace_wake(u64 stream, u32 reader, u64 head)
{
	trace_rtp_mgr_wake(stream, reader, head);
}

/*
 * UDP sockets. `struct sock` and `struct udp_sock` are opaque to Rust, and what follows is made of inline
 * functions and macros over them and over `struct sk_buff`.
 */

/* What tunnels set that have no number of their own in the kernel's ABI. */
#define RTP_MGR_ENCAP 1

static_assert(sizeof(struct rtp_mgr_arrival) == 56);

/*
 * The encap_rcv of adopted sockets: in softirq, under RCU, after the checksum and the policy check, before
 * the socket's filter. Its type is one of `struct udp_sock`, and finding the port is a macro.
 */
static int rtp_mgr_udp_rcv(struct sock *sk, struct sk_buff *skb)
{
	void *port = rcu_dereference_sk_user_data(sk);
	u8 bytes[RTP_MGR_HEAD];
	const u8 *head;
	u32 len, part;

	/*
	 * Sockets with an encap_rcv get coalesced packets one by one (udp_unexpected_gso()). One that is
	 * whole was on its way before the socket was adopted, or is another tunnel's: the socket's own.
	 */
	if (unlikely(!port || skb_is_gso(skb)))
		return 1;
	len = skb->len - sizeof(struct udphdr);
	part = min_t(u32, len, RTP_MGR_HEAD);
	head = skb_header_pointer(skb, sizeof(struct udphdr), part, bytes);
	if (unlikely(!head))
		return 1;
	/* A copy: a filter that shortens the packet may move it. */
	if (head != bytes)
		memcpy(bytes, head, part);
	return rtp_mgr_udp_packet(port, sk, skb, bytes, len);
}

/* Is this a UDP socket with a port? The fields are those of `struct sock` and `struct inet_sock`. */
int rtp_mgr_udp_check(struct sock *sk)
{
	if (!sk || !sk_is_udp(sk))
		return -EINVAL;
	return READ_ONCE(inet_sk(sk)->inet_num) ? 0 : -EINVAL;
}

/* lock_sock() is inline, rcu_assign_sk_user_data() a macro, udp_tunnel_encap_enable() inline. */
int rtp_mgr_udp_adopt(struct sock *sk, void *port)
{
	struct udp_sock *up = udp_sk(sk);
	int error = -EBUSY;

	lock_sock(sk);
	if (!READ_ONCE(up->encap_type) && !READ_ONCE(up->encap_rcv) &&
	    !rcu_dereference_protected(__sk_user_data(sk), lockdep_sock_is_held(sk))) {
		rcu_assign_sk_user_data(sk, port);
		WRITE_ONCE(up->encap_rcv, rtp_mgr_udp_rcv);
		/* Last: nothing looks at encap_rcv without it. */
		smp_store_release(&up->encap_type, RTP_MGR_ENCAP);
		udp_tunnel_encap_enable(sk);
		error = 0;
	}
	release_sock(sk);
	return error;
}

/*
 * Gives the socket its packets back, as far as it is still ours: user space may have set UDP_ENCAP meanwhile.
 * Packets may be on their way until an RCU grace period has passed: rtp_mgr_udp_forget() follows. Inline
 * functions and macros.
 */
void rtp_mgr_udp_release(struct sock *sk)
{
	struct udp_sock *up = udp_sk(sk);

	lock_sock(sk);
	if (READ_ONCE(up->encap_rcv) == rtp_mgr_udp_rcv) {
		if (READ_ONCE(up->encap_type) == RTP_MGR_ENCAP)
			WRITE_ONCE(up->encap_type, 0);
		WRITE_ONCE(up->encap_rcv, NULL);
	}
	release_sock(sk);
}

/* Then the pointer: until it is gone nobody else takes the socket. Macros. */
void rtp_mgr_udp_forget(struct sock *sk, void *port)
{
	lock_sock(sk);
	if (rcu_dereference_protected(__sk_user_data(sk), lockdep_sock_is_held(sk)) == port)
		rcu_assign_sk_user_data(sk, NULL);
	release_sock(sk);
}

/* sk_drops_read() is inline; the other is a field of `struct sock`. Any context. */
void rtp_mgr_udp_figures(struct sock *sk, u32 *drops, u32 *buffer)
{
	*drops = sk_drops_read(sk);
	*buffer = READ_ONCE(sk->sk_rcvbuf);
}

/*
 * What the UDP code does after encap_rcv and before the queue: cgroup programs, security module, socket
 * filter, which may shorten the packet. One that they refuse is dropped here and counted by the socket,
 * as it would have been there. Then tells of the packet. Inline functions and fields of the packet.
 */
bool rtp_mgr_udp_accept(struct sock *sk, struct sk_buff *skb, struct rtp_mgr_arrival *arrival)
{
	enum skb_drop_reason reason = sk_filter_trim_cap(sk, skb, sizeof(struct udphdr));
	const struct udphdr *uh = udp_hdr(skb);

	if (unlikely(reason)) {
		udp_drops_inc(sk);
		sk_skb_reason_drop(sk, skb, reason);
		return false;
	}
	if (skb->protocol == htons(ETH_P_IP)) {
		const struct iphdr *iph = ip_hdr(skb);

		memset(arrival, 0, 2 * sizeof(arrival->source));
		memcpy(arrival->source, &iph->saddr, sizeof(iph->saddr));
		memcpy(arrival->destination, &iph->daddr, sizeof(iph->daddr));
		arrival->family = 4;
	} else {
		const struct ipv6hdr *iph = ipv6_hdr(skb);

		memcpy(arrival->source, &iph->saddr, sizeof(iph->saddr));
		memcpy(arrival->destination, &iph->daddr, sizeof(iph->daddr));
		arrival->family = 6;
	}
	arrival->source_port = ntohs(uh->source);
	arrival->destination_port = ntohs(uh->dest);
	arrival->len = skb->len - sizeof(struct udphdr);
	/* The UDP code hands the segments of a coalesced packet over one after the other, linked. */
	arrival->more = !!skb->next;
	arrival->time_ns = ktime_to_ns(skb_tstamp(skb));
	return true;
}
