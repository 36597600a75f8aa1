// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * What the kernel's Rust API does not have (7.3), and nothing else. Each function says why it is here.
 */
#include <linux/cred.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/udp.h>
#include <linux/wait.h>
#include <net/sock.h>
#include <net/tcp_states.h>

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
