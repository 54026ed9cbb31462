/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The fast path of services asked from outside: packets of connections with backends of other nodes,
 * and their answers, turn round in the device's driver.
 *
 * Everything is made and kept by tc: who serves, the mapping, the lifetimes. Here it is only read, and
 * whatever is not plain (a first or last segment, options, fragments, errors, something missing, a
 * neighbour not known) goes up to tc as it came. So does one packet of a connection now and then, for
 * which tc does what there is to do: it renews the lifetimes, mends mappings and reports.
 */
#ifndef CILIUM_NODEPORT_XDP_H
#define CILIUM_NODEPORT_XDP_H

#include "endpoints.h"
#include "lb_connections.h"
#include "nat.h"

/*
 * Seconds after which tc sees a connection again. For so long its packets may go on with a source port
 * that a full table has taken from it.
 */
#define XDP_RENEW_S 8

#define VXLAN_HAS_VNI 0x08000000

struct vxlan_outer {
	struct ethhdr eth;
	struct iphdr ip;
	struct {
		__u16 source; /* be, as are all below */
		__u16 dest;
		__u16 len;
		__u16 check;
	} udp;
	struct {
		__u32 flags;
		__u32 vni; /* in the upper 24 bits */
	} vxlan;
} __attribute__((packed));

/* Layer 4 as far as it is looked at; the checksum lies elsewhere in the two. */
union xdp_l4 {
	struct {
		__u32 ports; /* source in the low half */
		__u32 seq;
		__u32 ack;
		__u8 offset;
		__u8 flags;
		__u16 window;
		__u16 check;
		__u16 urgent;
	} tcp;
	struct {
		__u32 ports;
		__u16 length;
		__u16 check;
	} udp;
};

/* How a client's packets go on, as tc has found out. */
struct xdp_path {
	__u32 identity; /* of the client */
	__u32 node;     /* be; of the backend */
	__u16 port;     /* be; source port that the backend sees */
};

/* One packet, on the stack. */
struct xdp_flow {
	struct tuple from; /* as the packet is */
	struct tuple to;   /* as it shall be */
	struct bpf_fib_lookup fib;
};

static __always_inline __u32 l3_size(const __u8 family)
{
	return family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

/*
 * Read the ends of a plain packet whose IP header is at `offset`. Returns its length with that header,
 * or 0 for one that tc shall see.
 */
static __always_inline __u32 xdp_parse(void *data, void *end, const __u32 offset, struct tuple *t,
				       const __u8 family)
{
	union xdp_l4 *l4 = data + offset + l3_size(family);
	__u32 length;

	if ((void *)l4 + sizeof(l4->udp) > end)
		return 0;
	if (family == FAMILY_IPV4) {
		struct iphdr *ip = data + offset;

		if (*(__u8 *)ip != 0x45 ||
		    ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK) ||
		    ip->ttl <= 1)
			return 0;
		t->saddr.v4 = ip->saddr;
		t->daddr.v4 = ip->daddr;
		t->proto = ip->protocol;
		length = bpf_ntohs(ip->tot_len);
	} else {
		struct ipv6hdr *ip = data + offset;

		if (ip->hop_limit <= 1)
			return 0;
		__builtin_memcpy(&t->saddr, &ip->saddr, 16);
		__builtin_memcpy(&t->daddr, &ip->daddr, 16);
		t->proto = ip->nexthdr;
		length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	}
	if (length < l3_size(family) + sizeof(l4->udp) || data + offset + length > end)
		return 0;
	t->sport = l4->udp.ports;
	t->dport = l4->udp.ports >> 16;
	if (t->proto == IPPROTO_UDP)
		return length;
	/* what opens and ends a connection is for tc to see */
	if (t->proto != IPPROTO_TCP || (void *)l4 + sizeof(l4->tcp) > end ||
	    l4->tcp.flags & (TCP_SYN | TCP_FIN | TCP_RST) || !(l4->tcp.flags & TCP_ACK))
		return 0;
	return length;
}

/* A checksum after one word of what it covers has changed, both still to be folded. */
static __always_inline __u64 replaced(__u64 sum, __u32 from, __u32 to)
{
	return sum + (__u32)~from + to;
}

/* Change the ends of the packet whose IP header is at `offset`, and its checksums. */
static __always_inline bool xdp_rewrite(void *data, void *end, const __u32 offset,
					const struct xdp_flow *flow, const bool hop,
					const __u8 family)
{
	const __u32 *from = (const __u32 *)&flow->from, *to = (const __u32 *)&flow->to;
	union xdp_l4 *l4 = data + offset + l3_size(family);
	__u32 was = flow->from.sport | (__u32)flow->from.dport << 16;
	__u32 is = flow->to.sport | (__u32)flow->to.dport << 16;
	__u64 sum = 0;
	__u16 *check;
	int i;

	if ((void *)l4 + sizeof(l4->udp) > end)
		return false;
	sum = replaced(sum, was, is);
	if (family == FAMILY_IPV4) {
		struct iphdr *ip = data + offset;
		__u64 header = (__u16)~ip->check;

		header = replaced(header, flow->from.saddr.v4, flow->to.saddr.v4);
		header = replaced(header, flow->from.daddr.v4, flow->to.daddr.v4);
		if (hop) {
			ip->ttl--;
			header += (__u16)~bpf_htons(0x0100);
		}
		ip->check = folded_sum(header);
		ip->saddr = flow->to.saddr.v4;
		ip->daddr = flow->to.daddr.v4;
		sum = replaced(sum, flow->from.saddr.v4, flow->to.saddr.v4);
		sum = replaced(sum, flow->from.daddr.v4, flow->to.daddr.v4);
	} else {
		struct ipv6hdr *ip = data + offset;

		if (hop)
			ip->hop_limit--;
		__builtin_memcpy(&ip->saddr, &flow->to.saddr, 16);
		__builtin_memcpy(&ip->daddr, &flow->to.daddr, 16);
#pragma clang loop unroll(full)
		for (i = 0; i < 8; i++)
			sum = replaced(sum, from[i], to[i]);
	}
	l4->udp.ports = is;
	if (flow->from.proto == IPPROTO_UDP) {
		/* zero is none */
		if (!l4->udp.check)
			return true;
		check = &l4->udp.check;
	} else {
		if ((void *)l4 + sizeof(l4->tcp) > end)
			return false;
		check = &l4->tcp.check;
	}
	*check = folded_sum(sum + (__u16) ~*check);
	if (flow->from.proto == IPPROTO_UDP && !*check)
		*check = 0xffff;
	return true;
}

/* The way to an address by the device that the packet came in on, with the neighbour known. */
static __always_inline bool xdp_way(struct xdp_md *ctx, struct xdp_flow *flow, __u32 length,
				    const __u8 family)
{
	flow->fib.ifindex = ctx->ingress_ifindex;
	flow->fib.tot_len = length;
	flow->fib.family = family == FAMILY_IPV4 ? AF_INET : AF_INET6;
	return !bpf_fib_lookup(ctx, &flow->fib, sizeof(flow->fib), 0) &&
	       flow->fib.ifindex == ctx->ingress_ifindex;
}

/* Who serves the packet's client, NULL where tc has something to do; and what tc knows of the way. */
static __always_inline const struct lb_backend *
xdp_backend(const struct tuple *t, struct xdp_path *path, const __u8 family)
{
	bool tcp = t->proto == IPPROTO_TCP;
	const struct lb_backend *backend;
	union ct_key key = {};
	struct ct_entry *entry;
	__u32 fresh;

	lb_connection_key(&key, t, family);
	entry = ct_find(&key, tcp, family);
	if (!entry || (tcp && (entry->flags & (CT_TX_CLOSING | CT_RX_CLOSING | CT_SEEN_NON_SYN)) !=
				      CT_SEEN_NON_SYN))
		return NULL;
	/* what is left of its life must be nearly all: else tc renews it */
	fresh = now_seconds() + lb_connection_lifetime(tcp, entry->flags);
	if (fresh - entry->lifetime >= XDP_RENEW_S)
		return NULL;
	path->identity = entry->src_identity;
	path->node = entry->out_rev;
	path->port = entry->proxy_port;
	backend = lb_backend_of(entry->backend);
	return backend && !(backend->flags & LB_BACKEND_LOCAL) ? backend : NULL;
}

/* Put the tunnel's headers in front. */
static __always_inline int xdp_encapsulate(struct xdp_md *ctx, const struct xdp_flow *flow,
					   __u32 length, __u32 identity)
{
	const struct config *config = config_of();
	struct vxlan_outer *outer;
	void *data, *end;
	__u32 entropy;
	__u64 sum;

	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	outer = data;
	if (data + sizeof(*outer) > end)
		return XDP_DROP;
	entropy = flow->from.saddr.words[3] ^ flow->from.saddr.words[0] ^ flow->from.sport ^
		  (__u32)flow->from.dport << 16;
	entropy = entropy * 0x9e3779b1;
	__builtin_memcpy(outer->eth.h_dest, flow->fib.dmac, 6);
	__builtin_memcpy(outer->eth.h_source, flow->fib.smac, 6);
	outer->eth.h_proto = bpf_htons(ETH_P_IP);
	*(__u16 *)&outer->ip = bpf_htons(0x4500);
	outer->ip.tot_len = bpf_htons(length);
	outer->ip.id = 0;
	outer->ip.frag_off = 0;
	outer->ip.ttl = OUTER_TTL;
	outer->ip.protocol = IPPROTO_UDP;
	outer->ip.saddr = config->node_ipv4;
	outer->ip.daddr = flow->fib.ipv4_dst;
	outer->udp.source = bpf_htons(0xc000 | entropy >> 18);
	outer->udp.dest = config->tunnel_port;
	outer->udp.len = bpf_htons(length - sizeof(outer->ip));
	outer->udp.check = 0;
	outer->vxlan.flags = bpf_htonl(VXLAN_HAS_VNI);
	outer->vxlan.vni = bpf_htonl(identity << 8);
	sum = (__u64)bpf_htons(0x4500) + outer->ip.tot_len +
	      bpf_htons(OUTER_TTL << 8 | IPPROTO_UDP) + config->node_ipv4 + flow->fib.ipv4_dst;
	outer->ip.check = folded_sum(sum);
	return XDP_TX;
}

/* From a client to a backend of another node. */
static __always_inline int xdp_serve(struct xdp_md *ctx, struct xdp_flow *flow, const __u8 family)
{
	const struct config *config = config_of();
	const struct lb_backend *backend;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 length = xdp_parse(data, end, ETH_HLEN, &flow->from, family);
	struct xdp_path path = {};

	if (!length)
		return XDP_PASS;
	backend = xdp_backend(&flow->from, &path, family);
	if (!backend || !path.node || !path.port || path.identity == ID_UNKNOWN ||
	    path.identity == ID_HOST)
		return XDP_PASS;
	if (path.identity > ID_CLUSTER_MAX)
		path.identity = ID_WORLD;
	if (family == FAMILY_IPV4)
		flow->to.saddr.v4 = config->router_ipv4;
	else
		__builtin_memcpy(&flow->to.saddr, config->router_ipv6, 16);
	flow->to.sport = path.port;
	__builtin_memcpy(&flow->to.daddr, backend->addr, 16);
	flow->to.dport = backend->port;
	flow->fib.ipv4_src = config->node_ipv4;
	flow->fib.ipv4_dst = path.node;
	length += sizeof(struct vxlan_outer);
	/* the next hop takes the place of the destination */
	if (!xdp_way(ctx, flow, length, FAMILY_IPV4))
		return XDP_PASS;
	flow->fib.ipv4_dst = path.node;
	if (!xdp_rewrite(data, end, ETH_HLEN, flow, false, family))
		return XDP_PASS;
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct vxlan_outer)))
		return XDP_DROP;
	return xdp_encapsulate(ctx, flow, length, path.identity);
}

/* From a backend of another node to its client. */
static __always_inline int xdp_return(struct xdp_md *ctx, struct xdp_flow *flow, const __u8 family)
{
	const __u32 offset = sizeof(struct vxlan_outer) + ETH_HLEN;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct lb_frontend *frontend;
	struct mapping client = {};
	struct ethhdr *eth;
	__u32 length = xdp_parse(data, end, offset, &flow->from, family), id;

	if (!length || !in_nat_range(flow->from.dport) ||
	    !nat_find(&flow->from, NAT_IN, &client, family) || !client.rev_nat)
		return XDP_PASS;
	id = client.rev_nat;
	frontend = map_lookup(map_of(LB_REVERSE_NAT), &id);
	if (!frontend || !frontend->port)
		return XDP_PASS;
	__builtin_memcpy(&flow->to.saddr, frontend->addr, 16);
	flow->to.sport = frontend->port;
	flow->to.daddr = client.address;
	flow->to.dport = client.port;
	if (family == FAMILY_IPV4) {
		flow->fib.ipv4_src = flow->to.saddr.v4;
		flow->fib.ipv4_dst = flow->to.daddr.v4;
	} else {
		__builtin_memcpy(flow->fib.ipv6_src, &flow->to.saddr, 16);
		__builtin_memcpy(flow->fib.ipv6_dst, &flow->to.daddr, 16);
	}
	if (!xdp_way(ctx, flow, length, family))
		return XDP_PASS;
	if (!xdp_rewrite(data, end, offset, flow, true, family))
		return XDP_PASS;
	if (bpf_xdp_adjust_head(ctx, sizeof(struct vxlan_outer)))
		return XDP_DROP;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(eth + 1) > end)
		return XDP_DROP;
	__builtin_memcpy(eth->h_dest, flow->fib.dmac, 6);
	__builtin_memcpy(eth->h_source, flow->fib.smac, 6);
	eth->h_proto = bpf_htons(family == FAMILY_IPV4 ? ETH_P_IP : ETH_P_IPV6);
	return XDP_TX;
}

/* An outer packet of the tunnel: what protocol is inside, 0 where tc shall see it. */
static __always_inline __u16 xdp_inside(void *data, void *end)
{
	const struct config *config = config_of();
	struct vxlan_outer *outer = data;
	struct ethhdr *inner = (void *)(outer + 1);
	__u32 identity;

	if ((void *)(inner + 1) > end || *(__u8 *)&outer->ip != 0x45 ||
	    outer->ip.protocol != IPPROTO_UDP || outer->udp.dest != config->tunnel_port ||
	    outer->ip.daddr != config->node_ipv4 ||
	    outer->ip.frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK) ||
	    outer->vxlan.flags != bpf_htonl(VXLAN_HAS_VNI))
		return 0;
	/* what tc would refuse, it shall */
	identity = bpf_ntohl(outer->vxlan.vni) >> 8;
	if (identity == ID_HOST || identity == ID_UNKNOWN)
		return 0;
	return inner->h_proto;
}

/* Services' part of XDP: XDP_TX, or XDP_PASS for all that tc shall do. */
static __always_inline int xdp_services(struct xdp_md *ctx, __u16 protocol)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct xdp_flow flow = {};
	__u16 inside;

	if (protocol == bpf_htons(ETH_P_IPV6))
		return xdp_serve(ctx, &flow, FAMILY_IPV6);
	inside = xdp_inside(data, end);
	if (inside == bpf_htons(ETH_P_IP))
		return xdp_return(ctx, &flow, FAMILY_IPV4);
	if (inside == bpf_htons(ETH_P_IPV6))
		return xdp_return(ctx, &flow, FAMILY_IPV6);
	return xdp_serve(ctx, &flow, FAMILY_IPV4);
}

#endif
