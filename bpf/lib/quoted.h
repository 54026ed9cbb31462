/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The packet that an ICMP error quotes: errors are judged, and translated, by what they are about.
 */
#ifndef CILIUM_QUOTED_H
#define CILIUM_QUOTED_H

#include "parse.h"

struct quoted {
	struct tuple tuple;
	__u32 l3_offset; /* from the Ethernet header */
	__u32 l4_offset;
};

/* Ports of the quoted layer 4 header, of which at least eight bytes are always sent. */
static __always_inline bool quote_ports(struct __sk_buff *skb, struct quoted *q, const __u8 family)
{
	union l4_header h = {};

	if (bpf_skb_load_bytes(skb, q->l4_offset, &h, 8))
		return false;
	switch (q->tuple.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		q->tuple.sport = h.udp.sport;
		q->tuple.dport = h.udp.dport;
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (h.icmp.type == (family == FAMILY_IPV4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST))
			q->tuple.sport = h.icmp.id;
		else if (h.icmp.type ==
			 (family == FAMILY_IPV4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY))
			q->tuple.dport = h.icmp.id;
		else
			return false;
		return true;
	}
	return false;
}

/*
 * Read the quoted packet. False when it is not one of ours to follow: cut short, a later fragment,
 * or not sent by the one who gets the error.
 */
static __always_inline bool quote(struct __sk_buff *skb, const struct packet *p, struct quoted *q,
				  const __u8 family)
{
	q->l3_offset = p->l4_offset + 8;
	if (family == FAMILY_IPV4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, q->l3_offset, &ip, sizeof(ip)) || ip.version != 4 ||
		    ip.ihl < 5 || ip.frag_off & bpf_htons(IPV4_OFFSET_MASK))
			return false;
		q->tuple.saddr.v4 = ip.saddr;
		q->tuple.daddr.v4 = ip.daddr;
		q->tuple.proto = ip.protocol;
		q->l4_offset = q->l3_offset + ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, q->l3_offset, &ip, sizeof(ip)) || ip.version != 6)
			return false;
		__builtin_memcpy(&q->tuple.saddr, &ip.saddr, 16);
		__builtin_memcpy(&q->tuple.daddr, &ip.daddr, 16);
		q->tuple.proto = ip.nexthdr;
		q->l4_offset = q->l3_offset + sizeof(ip);
	}
	if (!same_address(&q->tuple.saddr, &p->tuple.daddr, family))
		return false;
	return quote_ports(skb, q, family);
}

#endif
