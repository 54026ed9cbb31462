/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Changing addresses and ports in place, with every checksum that covers them.
 *
 * The helpers know the three states a checksum can be in (done, left to the device, summed up beside
 * the packet); lengths never change, so segmentation offload goes on working.
 */
#ifndef CILIUM_REWRITE_H
#define CILIUM_REWRITE_H

#include "quoted.h"

/* An internet checksum, of the sum of what it covers. */
static __always_inline __u16 folded_sum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16) ~((sum & 0xffff) + (sum >> 16));
}

/* Offset of the layer 4 checksum in its header; 0 where an address or port does not enter it. */
static __always_inline __u32 checksum_offset(__u8 proto, const __u8 family)
{
	switch (proto) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMP:
		return family == FAMILY_IPV4 ? 2 : 0;
	case IPPROTO_ICMPV6:
		return 2;
	}
	return 0;
}

static __always_inline __u32 mangled_flag(__u8 proto)
{
	return proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

static __always_inline long rewrite_address4(struct __sk_buff *skb, const struct packet *p,
					     __u32 offset, __u32 from, __u32 to)
{
	const __u32 ip_check = ETH_HLEN + offsetof(struct iphdr, check);
	__u32 check = checksum_offset(p->tuple.proto, FAMILY_IPV4);

	if (check && p->tuple.proto != IPPROTO_ICMP && !(p->flags & PACKET_LATER_FRAGMENT) &&
	    bpf_l4_csum_replace(skb, p->l4_offset + check, from, to,
				BPF_F_PSEUDO_HDR | mangled_flag(p->tuple.proto) | 4))
		return -1;
	return bpf_l3_csum_replace(skb, ip_check, from, to, 4) ||
	       bpf_skb_store_bytes(skb, offset, &to, 4, 0);
}

static __always_inline long rewrite_address6(struct __sk_buff *skb, const struct packet *p,
					     __u32 offset, const union address *from,
					     const union address *to)
{
	__u32 check = checksum_offset(p->tuple.proto, FAMILY_IPV6);
	__u32 difference = bpf_csum_diff((void *)from, 16, (void *)to, 16, 0);

	if (check && !(p->flags & PACKET_LATER_FRAGMENT) &&
	    bpf_l4_csum_replace(skb, p->l4_offset + check, 0, difference,
				BPF_F_PSEUDO_HDR | mangled_flag(p->tuple.proto)))
		return -1;
	/*
	 * The pseudo-header update above takes the change out of a sum kept beside the packet, as
	 * is right where an IP header checksum balances the address; recomputing puts it back.
	 */
	return bpf_skb_store_bytes(skb, offset, (void *)to, 16, BPF_F_RECOMPUTE_CSUM);
}

/* Replace the packet's source or destination address, in the packet and in the parsed form. */
static __always_inline long rewrite_address(struct __sk_buff *skb, struct packet *p,
					    const bool source, const union address *to,
					    const __u8 family)
{
	union address *mine = source ? &p->tuple.saddr : &p->tuple.daddr;
	__u32 offset;
	long failed;

	if (family == FAMILY_IPV4) {
		offset = ETH_HLEN +
			 (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
		failed = rewrite_address4(skb, p, offset, mine->v4, to->v4);
	} else {
		offset = ETH_HLEN + (source ? offsetof(struct ipv6hdr, saddr) :
					      offsetof(struct ipv6hdr, daddr));
		failed = rewrite_address6(skb, p, offset, mine, to);
	}
	*mine = *to;
	return failed;
}

/* Replace the source or destination port, or the identifier of an ICMP echo. */
static __always_inline long rewrite_port(struct __sk_buff *skb, struct packet *p, const bool source,
					 __u16 to, const __u8 family)
{
	bool icmp = p->tuple.proto == IPPROTO_ICMP || p->tuple.proto == IPPROTO_ICMPV6;
	__u16 from = source ? p->tuple.sport : p->tuple.dport;
	__u32 offset = p->l4_offset + (icmp ? 4 : source ? 0 : 2);
	__u32 check = checksum_offset(p->tuple.proto, family);

	if (source)
		p->tuple.sport = to;
	else
		p->tuple.dport = to;
	if (from == to || p->flags & PACKET_LATER_FRAGMENT)
		return 0;
	if (!check)
		return -1;
	if (bpf_l4_csum_replace(skb, p->l4_offset + check, from, to,
				mangled_flag(p->tuple.proto) | 2))
		return -1;
	return bpf_skb_store_bytes(skb, offset, &to, 2, 0);
}

/*
 * Translate one end of the packet that an ICMP error quotes: its source, when the error comes back
 * for a packet we sent, or its destination, when the error is ours. The quoted layer 4 checksum is
 * left as it is: the quote is cut short, nobody can check it.
 */
static __always_inline long rewrite_quoted(struct __sk_buff *skb, const struct packet *p,
					   const struct quoted *q, const bool source,
					   const union address *to, __u16 port, const __u8 family)
{
	const union address *from = source ? &q->tuple.saddr : &q->tuple.daddr;
	bool icmp = q->tuple.proto == IPPROTO_ICMP || q->tuple.proto == IPPROTO_ICMPV6;
	__u16 old = source ? q->tuple.sport : q->tuple.dport;
	__u32 port_offset = q->l4_offset + (icmp ? 4 : source ? 0 : 2);
	__u32 check = p->l4_offset + 2, offset;

	if (family == FAMILY_IPV4) {
		offset = q->l3_offset +
			 (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
		/* the quoted header's own checksum balances its address in the ICMP checksum */
		if (bpf_l3_csum_replace(skb, q->l3_offset + offsetof(struct iphdr, check), from->v4,
					to->v4, 4) ||
		    bpf_skb_store_bytes(skb, offset, (void *)&to->v4, 4, 0))
			return -1;
	} else {
		offset = q->l3_offset + (source ? offsetof(struct ipv6hdr, saddr) :
						  offsetof(struct ipv6hdr, daddr));
		if (bpf_l4_csum_replace(skb, check, 0,
					(__u32)bpf_csum_diff((void *)from, 16, (void *)to, 16, 0),
					0) ||
		    bpf_skb_store_bytes(skb, offset, (void *)to, 16, 0))
			return -1;
	}
	if (old == port)
		return 0;
	return bpf_l4_csum_replace(skb, check, old, port, 2) ||
	       bpf_skb_store_bytes(skb, port_offset, &port, 2, 0);
}

#endif
