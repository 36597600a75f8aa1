// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * What the kernel's Rust API does not have (7.3), and nothing else. Each function says why it is here.
 */
#include <linux/bpf-cgroup.h>
#include <linux/cred.h>
#include <linux/filter.h>
#include <linux/igmp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6.h>
#include <linux/sched.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/udp.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <net/hotdata.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/raw.h>
#include <net/rawv6.h>
#include <net/route.h>
#include <net/sock.h>
#include <net/tcp_states.h>
#include <net/udp.h>
#include <net/udp_tunnel.h>
#include <net/xfrm.h>

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

/* page_count() is an inline function, and struct page opaque to Rust. */
int rtp_mgr_page_holders(const struct page *page)
{
	return page_count(page);
}

/*
 * Macros and inline functions, as above: 2^order pages that the memory management knows by the first of them, their
 * memory, and the end of a reference to them.
 */
struct page *rtp_mgr_block_new(unsigned int order)
{
	gfp_t flags = GFP_KERNEL_ACCOUNT | __GFP_COMP | __GFP_ZERO | __GFP_NOWARN;

	/* A large one is worth no trouble. */
	return alloc_pages(order ? flags | __GFP_NORETRY : flags, order);
}

void *rtp_mgr_block_start(struct page *block)
{
	return page_address(block);
}

void rtp_mgr_block_put(struct page *block)
{
	put_page(block);
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

/*
 * As above: whether what it last sent through takes buffers in pieces, which it also has to add up itself: the stack
 * adds up while it copies. Else it copies pages once more (the `zc` of __ip_append_data()).
 */
bool rtp_mgr_udp_takes_pieces(struct socket *socket)
{
	const struct dst_entry *dst;
	bool pieces = false;

	rcu_read_lock();
	dst = rcu_dereference(socket->sk->sk_dst_cache);
	if (dst) {
		netdev_features_t features = dst_dev_rcu(dst)->features;
		netdev_features_t sums = NETIF_F_HW_CSUM |
			(dst->ops->family == AF_INET6 ? NETIF_F_IPV6_CSUM : NETIF_F_IP_CSUM);

		pieces = features & NETIF_F_SG && features & sums;
	}
	rcu_read_unlock();
	return pieces;
}

/* As above: whether sends are collected, for which the socket's lock is held while waiting for space. */
bool rtp_mgr_udp_is_corked(struct socket *socket)
{
	const struct sock *sk = socket->sk;

	return READ_ONCE(udp_sk(sk)->pending) || udp_test_bit(CORK, sk);
}

/*
 * struct sk_buff is opaque to Rust, and what fills it are inline functions. Called by the stack for a send that has
 * rtp_mgr_fill in its msghdr: adds pieces of pages to a buffer as they are. The stack's own way goes page by page,
 * and holds each.
 *
 * A message without a flight (flags of its msg_ubuf: 0) is no business of the buffer's: it forgets it.
 */
int rtp_mgr_fill(struct sk_buff *skb, struct iov_iter *from, size_t length)
{
	struct skb_shared_info *shared = skb_shinfo(skb);
	bool flight = skb_zcopy(skb);
	unsigned int most = flight ? MAX_SKB_FRAGS : READ_ONCE(net_hotdata.sysctl_max_skb_frags);
	unsigned int frag = shared->nr_frags;
	size_t left = min(length, from->count), part;

	if (!flight)
		shared->destructor_arg = NULL;
	if (length > left)
		return -EFAULT;
	while (left && frag < most) {
		const struct bio_vec *piece = from->bvec;
		size_t offset = piece->bv_offset + from->iov_offset;

		part = min(left, piece->bv_len - from->iov_offset);
		get_page(piece->bv_page);
		__skb_fill_page_desc_noacc(shared, frag++, piece->bv_page, offset, part);
		skb->data_len += part;
		skb->len += part;
		skb->truesize += flight ? PAGE_ALIGN(offset + part) : part;
		left -= part;
		from->count -= part;
		from->iov_offset += part;
		if (from->iov_offset == piece->bv_len) {
			from->iov_offset = 0;
			from->bvec++;
			from->nr_segs--;
		}
	}
	shared->nr_frags = frag;
	return left ? -EMSGSIZE : 0;
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

static_assert(sizeof(struct rtp_mgr_arrival) == 64);

static int rtp_mgr_udp_rcv(struct sock *sk, struct sk_buff *skb);
static int rtp_mgr_udp_hand_over(struct sock *sk, struct sk_buff *skb, bool early);

/*
 * Trains: packets that the network coalesced. The UDP code cuts a train up for a socket with an encap_rcv,
 * which costs more than all the rest, unless the packet says that it was coalesced for a tunnel
 * (udp_unexpected_gso()). So a hook at the end of netfilter's LOCAL_IN, right before the UDP code, says so of
 * trains that adopted sockets are to have whole: those of RTP only, and only for sockets that take trains
 * (UDP_GRO) and have no filter, which would see the train instead of its packets. docs/decisions/0009 has the
 * argument.
 */

/* What tells a train that may be whole from tunnels and fragment lists. */
#define RTP_MGR_TRAIN_TYPES \
	(SKB_GSO_UDP_L4 | SKB_GSO_FRAGLIST | SKB_GSO_UDP_TUNNEL | SKB_GSO_UDP_TUNNEL_CSUM)
#define RTP_MGR_PORTS 64

/* Does the stream of this port take packets? */
static __always_inline bool rtp_mgr_is_running(const struct rtp_mgr_port *port)
{
	return READ_ONCE(*port->state) == RTP_MGR_RUNNING;
}

/* A filter would see the train instead of its packets, and a train may hold RTP that is left to others. */
static bool rtp_mgr_udp_minds_trains(const struct rtp_mgr_port *port, const struct sock *sk)
{
	return rcu_access_pointer(sk->sk_filter) || port->leaves_others;
}

/*
 * The bytes of a packet from `offset` on that are in one piece, whose length is written. NULL: none are, or they are in a
 * packet that hangs on this one, or in pages that are to be mapped first. skb_seq_read() has all of that, at five times
 * the cost.
 */
const u8 *rtp_mgr_piece(const struct sk_buff *skb, u32 offset, u32 *len)
{
	const struct skb_shared_info *shared = skb_shinfo(skb);
	const skb_frag_t *frag = shared->frags, *last = frag + shared->nr_frags;
	u32 head = skb_headlen(skb);
	const u8 *bytes;

	if (offset < head) {
		*len = head - offset;
		return skb->data + offset;
	}
	if (IS_ENABLED(CONFIG_HIGHMEM) || !skb_frags_readable(skb))
		return NULL;
	offset -= head;
	for (; frag < last; offset -= skb_frag_size(frag++)) {
		if (offset >= skb_frag_size(frag))
			continue;
		bytes = skb_frag_address(frag);
		*len = skb_frag_size(frag) - offset;
		return bytes ? bytes + offset : NULL;
	}
	return NULL;
}

/* Packets in what the network handed over. */
static u32 rtp_mgr_packets(const struct sk_buff *skb)
{
	u32 len = skb->len - sizeof(struct udphdr);

	return skb_is_gso(skb) ? DIV_ROUND_UP(len, skb_shinfo(skb)->gso_size) : 1;
}

/* sk_filter_trim_cap(), but for the call where nothing of it but the security module has a say. */
static __always_inline enum skb_drop_reason rtp_mgr_filter(struct sock *sk, struct sk_buff *skb)
{
	if (cgroup_bpf_enabled(CGROUP_INET_INGRESS) || skb_pfmemalloc(skb) ||
	    rcu_access_pointer(sk->sk_filter))
		return sk_filter_trim_cap(sk, skb, sizeof(struct udphdr));
	return security_sock_rcv_skb(sk, skb) ? SKB_DROP_REASON_SECURITY_HOOK : 0;
}

/*
 * What the UDP code does after encap_rcv and before the queue: cgroup programs, security module, socket
 * filter, which may shorten the packet. One that they refuse is dropped here and counted by the socket,
 * as it would have been there. Inline functions and fields of the packet.
 */
static __always_inline bool rtp_mgr_accept(struct sock *sk, struct sk_buff *skb)
{
	enum skb_drop_reason reason;

	/* A packet that came early still has what the UDP code takes from it. */
	nf_reset_ct(skb);
	skb_orphan(skb);
	reason = rtp_mgr_filter(sk, skb);
	if (unlikely(reason)) {
		sk_drops_add(sk, rtp_mgr_packets(skb));
		sk_skb_reason_drop(sk, skb, reason);
		return false;
	}
	return true;
}

#ifdef CONFIG_NETFILTER
/* The hooks of a network namespace, from the first packet for them to the last leg's end. */
struct rtp_mgr_space {
	struct list_head list;
	struct rcu_head rcu;
	struct net *net;
	unsigned int users;
	struct nf_hook_ops ops[2];
};

/* A leg's socket, as the hook sees it. */
struct rtp_mgr_watch {
	struct hlist_node node;
	struct rcu_head rcu;
	struct sock *sk;
	struct rtp_mgr_space *space;
	struct work_struct work;
	unsigned long wanted;
};

static LIST_HEAD(rtp_mgr_spaces);
/* All watches, whether or not their namespace has hooks, by port. Changed under the lock, read under RCU. */
static struct hlist_head rtp_mgr_ports[RTP_MGR_PORTS];
static DEFINE_MUTEX(rtp_mgr_spaces_lock);

static struct hlist_head *rtp_mgr_bucket(u16 port)
{
	return &rtp_mgr_ports[port % RTP_MGR_PORTS];
}

/* Does a socket want trains that come for this port, and none mind? */
static bool rtp_mgr_port_takes_trains(struct net *net, u16 port)
{
	struct rtp_mgr_watch *watch;
	bool takes = false;

	hlist_for_each_entry_rcu(watch, rtp_mgr_bucket(port), node) {
		struct sock *sk = watch->sk;
		const struct rtp_mgr_port *of;

		if (READ_ONCE(inet_sk(sk)->inet_num) != port || !net_eq(sock_net(sk), net) ||
		    READ_ONCE(udp_sk(sk)->encap_rcv) != rtp_mgr_udp_rcv)
			continue;
		of = rcu_dereference_sk_user_data(sk);
		/* Without user data it is being adopted, and nobody knows by whom. */
		if (!of || rtp_mgr_udp_minds_trains(of, sk))
			return false;
		takes |= udp_test_bit(ACCEPT_L4, sk) && rtp_mgr_is_running(of);
	}
	return takes;
}

/* Makes it one that comes whole. Whether it does. */
static bool rtp_mgr_mark_train(struct net *net, struct sk_buff *skb, u8 family)
{
	const struct skb_shared_info *info = skb_shinfo(skb);
	u32 offset = skb_transport_offset(skb) + sizeof(struct udphdr);
	u8 protocol = family == NFPROTO_IPV4 ? ip_hdr(skb)->protocol : ipv6_hdr(skb)->nexthdr;
	struct udphdr bytes;
	const struct udphdr *uh;
	u32 len;

	if (protocol != IPPROTO_UDP || skb->encapsulation || !skb_csum_unnecessary(skb) ||
	    (info->gso_type & RTP_MGR_TRAIN_TYPES) != SKB_GSO_UDP_L4 || skb->len <= offset)
		return false;
	uh = skb_header_pointer(skb, offset - sizeof(bytes), sizeof(bytes), &bytes);
	len = skb->len - offset;
	if (!uh || ntohs(uh->len) != len + sizeof(bytes) || !info->gso_size ||
	    DIV_ROUND_UP(len, info->gso_size) > UDP_MAX_SEGMENTS)
		return false;
	if (!rtp_mgr_port_takes_trains(net, ntohs(uh->dest)) ||
	    !rtp_mgr_udp_is_rtp(skb, offset, len, info->gso_size))
		return false;
	/* What tells of a train is shared with its copies, such as that of a packet socket. */
	if (skb_unclone(skb, GFP_ATOMIC))
		return false;
	skb_shinfo(skb)->gso_type |= SKB_GSO_UDP_TUNNEL;
	return true;
}

/*
 * The early path: a packet that the UDP code would hand to an adopted socket's encap_rcv, and to nobody else, is
 * handed over by the hook itself, without the way there. All of what follows has to be true of it, each
 * condition for something that the UDP and IP code would do between; else the hook does nothing.
 * docs/decisions/0011 has the argument.
 */

/* Sockets with the same hash as a port that are looked at: as many as the UDP code looks at. */
#define RTP_MGR_CHAIN 10

/* The socket of this port, if it is the only one in its namespace: no look-up and no group has another. */
static __always_inline struct sock *rtp_mgr_only_socket(struct net *net, u16 port)
{
	struct udp_hslot *slot = udp_hashslot(net->ipv4.udp_table, net, port);
	struct sock *sk, *only = NULL;

	if (READ_ONCE(slot->count) > RTP_MGR_CHAIN)
		return NULL;
	sk_for_each_rcu(sk, &slot->head) {
		if (udp_sk(sk)->udp_port_hash != port || !net_eq(sock_net(sk), net))
			continue;
		if (only)
			return NULL;
		only = sk;
	}
	return only;
}

/* Is it a member of the group, for all senders? What ip_mc_sf_allow() asks, of which this is the usual part. */
static bool rtp_mgr_is_member(const struct sock *sk, __be32 group, int interface)
{
	const struct ip_mc_socklist *entry;

	for (entry = rcu_dereference(inet_sk(sk)->mc_list); entry;
	     entry = rcu_dereference(entry->next_rcu))
		if (entry->multi.imr_multiaddr.s_addr == group &&
		    entry->multi.imr_ifindex == interface)
			return entry->sfmode == MCAST_EXCLUDE && !rcu_access_pointer(entry->sflist);
	return false;
}

/*
 * Would the UDP code find this socket, if there is no other? What compute_score() and __udp_is_mcast_sock() ask,
 * over IPv4.
 */
static __always_inline bool rtp_mgr_socket_is_for4(struct net *net, const struct sock *sk,
						   const struct sk_buff *skb,
						   const struct udphdr *uh)
{
	unsigned int flags = skb_rtable(skb)->rt_flags & (RTCF_BROADCAST | RTCF_MULTICAST);
	bool slave = ipv4_l3mdev_skb(IPCB(skb)->flags);
	const struct iphdr *iph = ip_hdr(skb);
	int bound = READ_ONCE(sk->sk_bound_dev_if);
	__be32 address;
	__be16 port;

	/* Within a VRF the first membership counts, on either of its two interfaces. */
	if (unlikely(flags) && (flags != RTCF_MULTICAST || slave ||
				!rtp_mgr_is_member(sk, iph->daddr, skb->dev->ifindex)))
		return false;
	/* Bound to nothing, a socket gets what comes from any interface that is in no VRF. */
	if (unlikely(bound || slave) &&
	    !udp_sk_bound_dev_eq(net, bound, flags ? skb->dev->ifindex : inet_iif(skb),
				 inet_sdif(skb)))
		return false;
	/* Each read right before it is needed: they are in no order. */
	address = READ_ONCE(sk->sk_rcv_saddr);
	if (address && address != iph->daddr)
		return false;
	address = READ_ONCE(inet_sk(sk)->inet_daddr);
	if (unlikely(address) && address != iph->saddr)
		return false;
	port = READ_ONCE(inet_sk(sk)->inet_dport);
	if (unlikely(port) && port != uh->source)
		return false;
	return !ipv6_only_sock(sk);
}

#if IS_ENABLED(CONFIG_IPV6)
/* As above, over IPv6. */
static __always_inline bool rtp_mgr_socket_is_for6(struct net *net, const struct sock *sk,
				   const struct sk_buff *skb, const struct udphdr *uh)
{
	const struct ipv6hdr *iph = ipv6_hdr(skb);
	__be16 peer_port = READ_ONCE(inet_sk(sk)->inet_dport);

	return sk->sk_family == PF_INET6 &&
	       (ipv6_addr_any(&sk->sk_v6_rcv_saddr) ||
		ipv6_addr_equal(&sk->sk_v6_rcv_saddr, &iph->daddr)) &&
	       (ipv6_addr_any(&sk->sk_v6_daddr) || ipv6_addr_equal(&sk->sk_v6_daddr, &iph->saddr)) &&
	       (!peer_port || peer_port == uh->source) && !ipv6_addr_is_multicast(&iph->daddr) &&
	       udp_sk_bound_dev_eq(net, READ_ONCE(sk->sk_bound_dev_if), inet6_iif(skb), inet6_sdif(skb));
}

/* Will it be delivered here (seg6 asks the hooks as well), and is there no raw socket that gets a copy? */
static __always_inline bool rtp_mgr_is_plain6(struct net *net, const struct sk_buff *skb)
{
	return skb_dst(skb)->input == ip6_input &&
	       hlist_empty(&raw_v6_hashinfo.ht[raw_hashfunc(net, IPPROTO_UDP)]);
}
#else
static __always_inline bool rtp_mgr_socket_is_for6(struct net *net, const struct sock *sk,
				   const struct sk_buff *skb, const struct udphdr *uh)
{
	return false;
}

static __always_inline bool rtp_mgr_is_plain6(struct net *net, const struct sk_buff *skb)
{
	return false;
}
#endif

/* Is the checksum right, added up here, or absent where it may be? The device or the sender's host did not verify it. */
static noinline bool rtp_mgr_checksum_adds_up(const struct sk_buff *skb, const struct udphdr *uh,
					      u32 offset, u32 len, bool four)
{
	if (!uh->check)
		return four;
	if (skb->ip_summed != CHECKSUM_NONE)
		return false;
	if (four)
		return !csum_tcpudp_magic(ip_hdr(skb)->saddr, ip_hdr(skb)->daddr, len, IPPROTO_UDP,
					  skb_checksum(skb, offset, len, 0));
	return !csum_ipv6_magic(&ipv6_hdr(skb)->saddr, &ipv6_hdr(skb)->daddr, len, IPPROTO_UDP,
				skb_checksum(skb, offset, len, 0));
}

/* Does the UDP code find the checksum right? */
static __always_inline bool rtp_mgr_checksum_holds(const struct sk_buff *skb,
						   const struct udphdr *uh, u32 offset, u32 len,
						   bool four)
{
	/* First what most packets are, since the compiler calls the function. */
	if (likely(skb->ip_summed == CHECKSUM_UNNECESSARY ||
		   (skb->ip_summed == CHECKSUM_PARTIAL && skb_checksum_start_offset(skb) >= 0)) ||
	    skb_csum_unnecessary(skb))
		return four || uh->check;
	return rtp_mgr_checksum_adds_up(skb, uh, offset, len, four);
}

/* Is there no policy of IPsec that the packet would be checked against? */
static __always_inline bool rtp_mgr_has_no_policy(struct net *net, const struct sock *sk, struct sk_buff *skb)
{
#ifdef CONFIG_XFRM
	return !rcu_access_pointer(sk->sk_policy[XFRM_POLICY_IN]) &&
	       __xfrm_check_nopolicy(net, skb, XFRM_POLICY_IN);
#else
	return true;
#endif
}

/* The adopted socket that gets this packet, and nothing but its encap_rcv has a say in that. */
static __always_inline struct sock *rtp_mgr_early_socket(struct net *net, struct sk_buff *skb, bool four)
{
	u32 offset = skb_transport_offset(skb);
	u32 len = skb->len - offset;
	const struct udphdr *uh;
	struct sock *sk = skb->sk;

	if ((four ? ip_hdr(skb)->protocol : ipv6_hdr(skb)->nexthdr) != IPPROTO_UDP ||
	    skb_headlen(skb) < offset + sizeof(*uh))
		return NULL;
	uh = udp_hdr(skb);
	/* Another hook (ipvlan's) may have given it to a device of another namespace. */
	if (ntohs(uh->len) != len || skb_shinfo(skb)->flags & SKBFL_ZEROCOPY_ENABLE || !net_eq(dev_net(skb->dev), net))
		return NULL;
	if (sk) {
		/* Early demultiplexing found it; the first packet tells it the route. */
		if (skb->destructor != sock_pfree || !sk_fullsock(sk) || !sk_is_udp(sk) ||
		    rcu_access_pointer(sk->sk_rx_dst) != skb_dst(skb))
			return NULL;
	} else {
		sk = rtp_mgr_only_socket(net, ntohs(uh->dest));
		if (!sk || static_branch_unlikely(&bpf_sk_lookup_enabled) ||
		    !(four ? rtp_mgr_socket_is_for4(net, sk, skb, uh) :
			     rtp_mgr_socket_is_for6(net, sk, skb, uh)))
			return NULL;
	}
	if (!READ_ONCE(udp_sk(sk)->encap_type) ||
	    READ_ONCE(udp_sk(sk)->encap_rcv) != rtp_mgr_udp_rcv ||
	    rcu_access_pointer(sk->sk_reuseport_cb) || rcu_access_pointer(sk->sk_filter) ||
	    !rtp_mgr_has_no_policy(net, sk, skb))
		return NULL;
	if (four ? !hlist_empty(&raw_v4_hashinfo.ht[raw_hashfunc(net, IPPROTO_UDP)]) :
		   !rtp_mgr_is_plain6(net, skb))
		return NULL;
	return rtp_mgr_checksum_holds(skb, uh, offset, len, four) ? sk : NULL;
}

/*
 * As rtp_mgr_udp_hand_over() does. Of a packet by itself whose first bytes are at hand, what it is is looked at here, in
 * the same way as is_rtp_start() of ring/src/header.rs does: one call less.
 */
static __always_inline int rtp_mgr_hand_over_early(struct sock *sk, struct sk_buff *skb)
{
	const u8 *head = skb->data + sizeof(struct udphdr);
	struct rtp_mgr_port *port = rcu_dereference_sk_user_data(sk);

	if (unlikely(!port))
		return 1;
	if (unlikely(skb_headlen(skb) < sizeof(struct udphdr) + RTP_MGR_HEAD || port->leaves_others))
		return rtp_mgr_udp_hand_over(sk, skb, true);
	if (unlikely((head[0] & 0xc0) != 0x80 || (head[1] & 0xe0) == 0xc0 ||
		     !rtp_mgr_is_running(port)))
		return 1;
	if (unlikely(!rtp_mgr_accept(sk, skb)))
		return 0;
	return rtp_mgr_udp_take(port, skb, skb_network_header(skb), skb->data,
				ktime_to_ns(skb_tstamp(skb)));
}

/* The same of a train. If another socket of this port takes trains, the UDP code cuts them up for this one. */
static __always_inline int rtp_mgr_hand_train_over(struct sock *sk, struct sk_buff *skb)
{
	return udp_test_bit(ACCEPT_L4, sk) ? rtp_mgr_udp_hand_over(sk, skb, true) : 1;
}

/* What the IP and the UDP code do with such a packet. Whether it is taken: else it is as it was. */
static __always_inline bool rtp_mgr_take_early(struct net *net, struct sk_buff *skb, bool four,
					       bool train)
{
	struct sock *sk = rtp_mgr_early_socket(net, skb, four);
	u32 offset = skb_transport_offset(skb);
#if IS_ENABLED(CONFIG_IPV6)
	struct inet6_dev *idev;
#endif

	if (!sk)
		return false;
#if IS_ENABLED(CONFIG_IPV6)
	idev = four ? NULL : ip6_dst_idev(skb_dst(skb));
#endif
	__skb_pull(skb, offset);
	if (train ? rtp_mgr_hand_train_over(sk, skb) : rtp_mgr_hand_over_early(sk, skb)) {
		__skb_push(skb, offset);
		return false;
	}
	trace_rtp_mgr_early(ntohs(inet_sk(sk)->inet_sport));
	if (four) {
		__UDP_INC_STATS(net, UDP_MIB_INDATAGRAMS);
		__IP_INC_STATS(net, IPSTATS_MIB_INDELIVERS);
#if IS_ENABLED(CONFIG_IPV6)
	} else {
		__UDP6_INC_STATS(net, UDP_MIB_INDATAGRAMS);
		__IP6_INC_STATS(net, idev, IPSTATS_MIB_INDELIVERS);
#endif
	}
	return true;
}

static noinline bool rtp_mgr_take_train(struct net *net, struct sk_buff *skb, bool four)
{
	return rtp_mgr_take_early(net, skb, four, true);
}

/* Hooks that come after this one, such as conntrack's confirmation, are run before a packet is taken. */
static noinline unsigned int rtp_mgr_take_after(struct sk_buff *skb,
						const struct nf_hook_state *state,
						const struct nf_hook_entries *hooks,
						nf_hookfn *own, bool four)
{
	unsigned int next = 0;

	while (next < hooks->num_hook_entries && hooks->hooks[next++].hook != own)
		;
	/* Without this one among them it is about to go. */
	if (next == hooks->num_hook_entries || !rtp_mgr_early_socket(state->net, skb, four))
		return NF_ACCEPT;
	if (nf_hook_slow(skb, (struct nf_hook_state *)state, hooks, next) == 1 &&
	    !rtp_mgr_take_early(state->net, skb, four, skb_is_gso(skb)))
		state->okfn(state->net, state->sk, skb);
	return NF_STOLEN;
}

static __always_inline unsigned int rtp_mgr_local_in(struct sk_buff *skb,
						     const struct nf_hook_state *state,
						     struct nf_hook_entries __rcu *const *list,
						     nf_hookfn *own, bool four)
{
	const struct nf_hook_entries *hooks = rcu_dereference(*list);
	bool train = skb_is_gso(skb);

	if (unlikely(train) && !rtp_mgr_mark_train(state->net, skb, state->pf))
		return NF_ACCEPT;
	/* A packet that user space was asked about comes in process context. */
	if (unlikely(!in_softirq() || !hooks))
		return NF_ACCEPT;
	if (unlikely(hooks->hooks[hooks->num_hook_entries - 1].hook != own))
		return rtp_mgr_take_after(skb, state, hooks, own, four);
	if (unlikely(train))
		return rtp_mgr_take_train(state->net, skb, four) ? NF_STOLEN : NF_ACCEPT;
	return rtp_mgr_take_early(state->net, skb, four, false) ? NF_STOLEN : NF_ACCEPT;
}

static unsigned int rtp_mgr_local_in4(void *priv, struct sk_buff *skb,
				      const struct nf_hook_state *state)
{
	return rtp_mgr_local_in(skb, state, &state->net->nf.hooks_ipv4[NF_INET_LOCAL_IN],
				rtp_mgr_local_in4, true);
}

static unsigned int rtp_mgr_local_in6(void *priv, struct sk_buff *skb,
				      const struct nf_hook_state *state)
{
	return rtp_mgr_local_in(skb, state, &state->net->nf.hooks_ipv6[NF_INET_LOCAL_IN],
				rtp_mgr_local_in6, false);
}

/* The hooks of this namespace. NULL: they cannot be had. */
static struct rtp_mgr_space *rtp_mgr_space_get(struct net *net)
{
	static const struct nf_hook_ops ops[] = {
		{
			.hook = rtp_mgr_local_in4,
			.pf = NFPROTO_IPV4,
			.hooknum = NF_INET_LOCAL_IN,
			.priority = NF_IP_PRI_LAST,
		}, {
			.hook = rtp_mgr_local_in6,
			.pf = NFPROTO_IPV6,
			.hooknum = NF_INET_LOCAL_IN,
			.priority = NF_IP6_PRI_LAST,
		},
	};
	struct rtp_mgr_space *space;
	int i;

	list_for_each_entry(space, &rtp_mgr_spaces, list) {
		if (space->net == net) {
			space->users++;
			return space;
		}
	}
	space = kzalloc(sizeof(*space), GFP_KERNEL);
	if (!space)
		return NULL;
	space->net = net;
	space->users = 1;
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		space->ops[i] = ops[i];
	if (nf_register_net_hooks(net, space->ops, ARRAY_SIZE(ops))) {
		/* The first of them was there for a moment: see rtp_mgr_watch_free(). */
		kfree_rcu(space, rcu);
		return NULL;
	}
	list_add(&space->list, &rtp_mgr_spaces);
	return space;
}

static void rtp_mgr_watch_begin(struct work_struct *work)
{
	struct rtp_mgr_watch *watch = container_of(work, struct rtp_mgr_watch, work);

	mutex_lock(&rtp_mgr_spaces_lock);
	watch->space = rtp_mgr_space_get(sock_net(watch->sk));
	mutex_unlock(&rtp_mgr_spaces_lock);
}

/*
 * A socket to watch. It has a say from here on: other sockets of its port may have trains already. The hooks
 * are there once there is something for them, since they cost each packet of the namespace something. Hooks,
 * work items and lists have no Rust API. Process context.
 */
struct rtp_mgr_watch *rtp_mgr_watch_new(struct sock *sk)
{
	struct rtp_mgr_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL_ACCOUNT);

	if (watch) {
		watch->sk = sk;
		INIT_WORK(&watch->work, rtp_mgr_watch_begin);
		mutex_lock(&rtp_mgr_spaces_lock);
		hlist_add_head_rcu(&watch->node, rtp_mgr_bucket(READ_ONCE(inet_sk(sk)->inet_num)));
		mutex_unlock(&rtp_mgr_spaces_lock);
	}
	return watch;
}

/* Its socket is adopted no more, and no packet is on its way through it. Process context. */
void rtp_mgr_watch_free(struct rtp_mgr_watch *watch)
{
	struct rtp_mgr_space *unused = NULL;

	cancel_work_sync(&watch->work);
	mutex_lock(&rtp_mgr_spaces_lock);
	hlist_del_rcu(&watch->node);
	if (watch->space && !--watch->space->users) {
		unused = watch->space;
		list_del(&unused->list);
		nf_unregister_net_hooks(unused->net, unused->ops, ARRAY_SIZE(unused->ops));
	}
	mutex_unlock(&rtp_mgr_spaces_lock);
	/* Packets may be in the hook: at the watch, and at its socket, which UDP frees after a grace period. */
	kfree_rcu(watch, rcu);
	/* Whoever lists hooks (nfnetlink_hook) may be looking at these, under RCU. */
	if (unused)
		kfree_rcu(unused, rcu);
}

/*
 * A packet came that the hook might have taken, or of a train that it might have left whole: from now on the
 * hook is there. Softirq.
 */
static void rtp_mgr_watch_want(struct rtp_mgr_watch *watch, bool cut)
{
	struct sock *sk = watch->sk;

	if (READ_ONCE(watch->wanted))
		return;
	if ((cut && udp_test_bit(ACCEPT_L4, sk)) ||
	    (!rcu_access_pointer(sk->sk_reuseport_cb) && !rcu_access_pointer(sk->sk_filter) &&
	     rtp_mgr_only_socket(sock_net(sk), READ_ONCE(inet_sk(sk)->inet_num)) == sk)) {
		if (!test_and_set_bit(0, &watch->wanted))
			schedule_work(&watch->work);
	}
}
#else
/* Without netfilter there is no hook, and all trains are cut up. */
struct rtp_mgr_watch {
	struct sock *sk;
};

struct rtp_mgr_watch *rtp_mgr_watch_new(struct sock *sk)
{
	return kzalloc(sizeof(struct rtp_mgr_watch), GFP_KERNEL_ACCOUNT);
}

void rtp_mgr_watch_free(struct rtp_mgr_watch *watch)
{
	kfree(watch);
}

static void rtp_mgr_watch_want(struct rtp_mgr_watch *watch, bool cut)
{
}
#endif

/* A train that came whole. One that the hook did not mark is a tunnel's, or was on its way before. */
static int rtp_mgr_udp_rcv_train(struct rtp_mgr_port *port, struct sock *sk, struct sk_buff *skb)
{
	if ((skb_shinfo(skb)->gso_type & RTP_MGR_TRAIN_TYPES) !=
	    (SKB_GSO_UDP_L4 | SKB_GSO_UDP_TUNNEL) || skb->encapsulation)
		return 1;
	/* As when it was marked, unless that changed since. */
	if (rtp_mgr_udp_minds_trains(port, sk))
		return 1;
	return rtp_mgr_udp_train(port, sk, skb, skb_shinfo(skb)->gso_size);
}

/*
 * A packet of an adopted socket: in softirq, under RCU, after the checksum and the policy check, before the socket's
 * filter. Finding the port is a macro.
 */
static int rtp_mgr_udp_hand_over(struct sock *sk, struct sk_buff *skb, bool early)
{
	struct rtp_mgr_port *port = rcu_dereference_sk_user_data(sk);
	u8 bytes[RTP_MGR_HEAD];
	const u8 *head;
	u32 len, part;

	if (unlikely(!port))
		return 1;
	if (skb_is_gso(skb))
		return rtp_mgr_udp_rcv_train(port, sk, skb);
	if (!early)
		/* If another comes with it, it was cut off a train. */
		rtp_mgr_watch_want(port->watch, skb->next);
	len = skb->len - sizeof(struct udphdr);
	part = min_t(u32, len, RTP_MGR_HEAD);
	head = skb_header_pointer(skb, sizeof(struct udphdr), part, bytes);
	if (unlikely(!head))
		return 1;
	return rtp_mgr_udp_packet(port, sk, skb, head, len, early);
}

/* The encap_rcv of adopted sockets. Its type is one of `struct udp_sock`. */
static int rtp_mgr_udp_rcv(struct sock *sk, struct sk_buff *skb)
{
	return rtp_mgr_udp_hand_over(sk, skb, false);
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

/* Whether the socket accepts a packet, which then tells of itself. Inline functions and fields of the packet. */
bool rtp_mgr_udp_accept(struct sock *sk, struct sk_buff *skb, struct rtp_mgr_arrival *arrival)
{
	const struct udphdr *uh = udp_hdr(skb);

	if (!rtp_mgr_accept(sk, skb))
		return false;
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
	arrival->bytes = skb_is_nonlinear(skb) ? NULL : skb->data + sizeof(struct udphdr);
	return true;
}

/*
 * Frees a packet that was taken. Its buffer goes where the network stack of this processor gets its next ones from, or to
 * the processor that it is of, as those do that poll functions of devices free. There it may wait for long, and a buffer
 * with pages is not to keep its sender's (docs/decisions/0013). A field of the packet. Bottom halves are off.
 */
void rtp_mgr_udp_free(struct sk_buff *skb)
{
	if (unlikely(skb_is_nonlinear(skb) && skb->alloc_cpu != smp_processor_id()))
		consume_skb(skb);
	else
		/* Any number but 0 says that bottom halves are off. */
		napi_consume_skb(skb, 1);
}
