/* SPDX-License-Identifier: MIT OR GPL-2.0 */
#ifndef RTP_MGR_SHIM_H
#define RTP_MGR_SHIM_H

#include <linux/cred.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>

void rtp_mgr_lock_init(spinlock_t *lock);
void rtp_mgr_lock(spinlock_t *lock);
void rtp_mgr_unlock(spinlock_t *lock);
void rtp_mgr_wait_init(wait_queue_head_t *queue);
void rtp_mgr_wait_register(struct file *file, wait_queue_head_t *queue, poll_table *table);
void rtp_mgr_wait_wake(wait_queue_head_t *queue, __poll_t events);
const struct cred *rtp_mgr_swap_creds(const struct cred *creds);
void rtp_mgr_cond_resched(void);
int rtp_mgr_udp_may_send(struct socket *socket);
int rtp_mgr_udp_send_buffer(struct socket *socket);
bool rtp_mgr_udp_is_corked(struct socket *socket);
void rtp_mgr_trace_publish(u64 stream, u64 head, u64 packets);
void rtp_mgr_trace_drop(u64 stream, u64 head, u64 packets);
void rtp_mgr_trace_wake(u64 stream, u32 reader, u64 head);

#endif
