/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The ways a packet leaves the data plane: into a local pod, into the tunnel, out of a device of the
 * node, or up the node's own stack. Each writes the headers, counts, reports and returns a tc action.
 */
#ifndef CILIUM_DELIVERY_H
#define CILIUM_DELIVERY_H

#include "endpoints.h"
#include "events.h"
#include "parse.h"

#define DELIVERY_DROP(reason) DROP_AT(FILE_DELIVERY, reason)

/* BCC declares this one without its length argument. */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *next, int length,
			      __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

static __always_inline int write_macs(struct __sk_buff *skb, const __u8 *source, const __u8 *target)
{
	void *data = headers(skb, ETH_HLEN);
	struct ethhdr *eth = data;

	if (!data)
		return DELIVERY_DROP(DROP_ERROR_WRITING_TO_PACKET);
	__builtin_memcpy(eth->h_dest, target, 6);
	__builtin_memcpy(eth->h_source, source, 6);
	return 0;
}

static __always_inline int decrement_ttl4(struct __sk_buff *skb)
{
	void *data = headers(skb, ETH_HLEN + sizeof(struct iphdr));
	struct iphdr *ip;
	__u32 check;

	if (!data)
		return DELIVERY_DROP(DROP_INVALID_PACKET_DROPPED);
	ip = data + ETH_HLEN;
	if (ip->ttl <= 1)
		return DELIVERY_DROP(DROP_TTL_EXCEEDED);
	check = ip->check + bpf_htons(0x0100);
	ip->check = (__u16)(check + (check >= 0xffff));
	ip->ttl--;
	return 0;
}

static __always_inline int decrement_ttl6(struct __sk_buff *skb)
{
	const __u32 offset = ETH_HLEN + offsetof(struct ipv6hdr, hop_limit);
	void *data = headers(skb, ETH_HLEN + sizeof(struct ipv6hdr));
	struct ipv6hdr *ip;
	__u8 hops;

	if (!data)
		return DELIVERY_DROP(DROP_INVALID_PACKET_DROPPED);
	ip = data + ETH_HLEN;
	hops = ip->hop_limit;
	if (hops <= 1)
		return DELIVERY_DROP(DROP_TTL_EXCEEDED);
	hops--;
	/* no header checksum balances the change, so a checksum kept beside the packet must learn */
	if (bpf_skb_store_bytes(skb, offset, &hops, 1, BPF_F_RECOMPUTE_CSUM))
		return DELIVERY_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

static __always_inline int decrement_ttl(struct __sk_buff *skb, const __u8 family)
{
	return family == FAMILY_IPV4 ? decrement_ttl4(skb) : decrement_ttl6(skb);
}

/* Straight into the pod's namespace, past both queues. Only from an ingress hook. */
static __always_inline int deliver_to_pod(struct __sk_buff *skb, struct packet *p,
					  const struct endpoint_info *pod, const __u8 family)
{
	int verdict = write_macs(skb, pod->node_mac, pod->mac);

	p->endpoint = pod->id;
	p->direction = DIR_INGRESS;
	if (!verdict)
		verdict = decrement_ttl(skb, family);
	if (verdict)
		return verdict;
	trace_to(skb, p, TRACE_TO_LXC, pod->id, family);
	count_forward(skb, DIR_INGRESS);
	return bpf_redirect_peer(pod->ifindex, 0);
}

/* Into the tunnel. The identity is the network identifier; the host speaks as a remote node. */
static __always_inline int deliver_to_node(struct __sk_buff *skb, struct packet *p, __u32 node,
					   __u32 identity, const __u8 family)
{
	const struct config *config = config_of();
	struct bpf_tunnel_key key = {
		.tunnel_id = identity == ID_HOST ? ID_REMOTE_NODE : identity,
		.remote_ipv4 = bpf_ntohl(node),
		.tunnel_ttl = OUTER_TTL,
		.local_ipv4 = bpf_ntohl(config->node_ipv4),
	};

	if (!node || !config->tunnel_ifindex)
		return DELIVERY_DROP(DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT);
	/* the VNI has 24 bits: the cluster's identities fit, those of CIDRs mean nothing elsewhere */
	if (identity > ID_CLUSTER_MAX)
		return DELIVERY_DROP(DROP_INVALID_IDENTITY);
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return DELIVERY_DROP(DROP_ERROR_WRITING_TO_PACKET);
	p->flags |= PACKET_TUNNEL;
	p->peer = node;
	trace_to(skb, p, TRACE_TO_OVERLAY, 0, family);
	count_forward(skb, DIR_EGRESS);
	skb->mark = MARK_OVERLAY;
	return bpf_redirect(config->tunnel_ifindex, 0);
}

/* Up the stack of the node, which routes it or takes it in. */
static __always_inline int deliver_to_stack(struct __sk_buff *skb, struct packet *p,
					    const __u8 point, __u32 mark, const __u8 family)
{
	trace_to(skb, p, point, 0, family);
	count_forward(skb, p->direction);
	skb->mark = mark;
	return TC_ACT_OK;
}

/*
 * Out of one of the node's devices, as the node's own routes say. The stack takes over where it
 * knows better: no route, a packet too big for the way, a TTL about to end.
 */
static __always_inline int deliver_to_world(struct __sk_buff *skb, struct packet *p, __u32 mark,
					    const __u8 family)
{
	struct bpf_fib_lookup fib = {.ifindex = skb->ifindex};
	struct bpf_redir_neigh next = {};
	int verdict;
	long found;

	if (family == FAMILY_IPV4) {
		fib.family = AF_INET;
		fib.ipv4_src = p->tuple.saddr.v4;
		fib.ipv4_dst = p->tuple.daddr.v4;
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->tuple.saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->tuple.daddr, 16);
	}
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (found == BPF_FIB_LKUP_RET_BLACKHOLE)
		return DELIVERY_DROP(DROP_FIB_LOOKUP_FAILED);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return deliver_to_stack(skb, p, TRACE_TO_STACK, mark, family);
	/* a pod address that nobody has */
	if (fib.ifindex == config_of()->host_ifindex)
		return DELIVERY_DROP(DROP_STALE_OR_UNROUTABLE_IP);
	verdict = decrement_ttl(skb, family);
	if (verdict) {
		if (drop_reason_of(verdict) == DROP_TTL_EXCEEDED)
			return deliver_to_stack(skb, p, TRACE_TO_STACK, mark, family);
		return verdict;
	}
	next.nh_family = fib.family;
	if (fib.family == AF_INET)
		next.ipv4_nh = fib.ipv4_dst;
	else
		__builtin_memcpy(next.ipv6_nh, fib.ipv6_dst, 16);
	trace_to(skb, p, TRACE_TO_NETWORK, 0, family);
	count_forward(skb, DIR_EGRESS);
	skb->mark = mark;
	/* through the neighbour table even when the address is known, which keeps it fresh */
	return redirect_neigh(fib.ifindex, &next, sizeof(next), 0);
}

#endif
