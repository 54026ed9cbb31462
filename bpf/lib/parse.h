/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * From bytes to struct packet. Whatever is malformed gets a drop reason here, so that the rest of
 * the pipeline works on packets whose headers are whole and consistent with each other.
 */
#ifndef CILIUM_PARSE_H
#define CILIUM_PARSE_H

#include "packet.h"
#include "fragments.h"

#define PARSE_DROP(reason) DROP_AT(FILE_PARSE, reason)

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK    0x1fff
#define IPV6_EXTENSIONS_MAX 6

/* Extension headers of IPv6, by next-header number. */
enum ipv6_next {
	NEXT_HOP_BY_HOP = 0,
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_AUTH = 51,
	NEXT_NONE = 59,
	NEXT_DESTINATION = 60,
};

/* The first bytes of every layer 4 header we know. */
union l4_header {
	struct {
		__u16 sport;
		__u16 dport;
		__u32 seq;
		__u32 ack;
		__u8 offset; /* header length in words, upper half */
		__u8 flags;
		__u16 window;
	} tcp;
	struct {
		__u16 sport;
		__u16 dport;
		__u16 length;
		__u16 check;
	} udp;
	struct {
		__u8 type;
		__u8 code;
		__u16 check;
		__u16 id;
		__u16 sequence;
	} icmp;
};

/*
 * Make the first bytes of the packet readable in place. The common case is two loads and one
 * compare; bytes in page fragments are pulled in first.
 */
static __always_inline void *headers(struct __sk_buff *skb, const __u32 length)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (likely_(data + length <= end))
		return data;
	if (skb->len < length || bpf_skb_pull_data(skb, length))
		return NULL;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	return data + length <= end ? data : NULL;
}

static __always_inline int parse_tcp(struct packet *p, const union l4_header *h, __u32 length)
{
	__u8 flags = h->tcp.flags;
	__u32 header = (h->tcp.offset >> 4) * 4;

	if (header < 20 || (header > length && !(p->flags & PACKET_FRAGMENT)))
		return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
	/* A segment that opens and closes at once, or that says nothing at all, is an attack. */
	if (!(flags & (TCP_SYN | TCP_RST | TCP_ACK | TCP_FIN)) ||
	    ((flags & TCP_SYN) && (flags & (TCP_FIN | TCP_RST))))
		return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
	p->tuple.sport = h->tcp.sport;
	p->tuple.dport = h->tcp.dport;
	p->tcp_flags = flags;
	return 0;
}

static __always_inline int parse_udp(struct packet *p, const union l4_header *h, __u32 length)
{
	__u32 claimed = bpf_ntohs(h->udp.length);

	if (claimed < 8 || (claimed > length && !(p->flags & PACKET_FRAGMENT)))
		return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
	p->tuple.sport = h->udp.sport;
	p->tuple.dport = h->udp.dport;
	return 0;
}

static __always_inline int parse_icmp4(struct packet *p, const union l4_header *h)
{
	switch (h->icmp.type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
		p->tuple.sport = h->icmp.id;
		return 0;
	case ICMP_ECHOREPLY:
	case ICMP_TIMESTAMPREPLY:
		p->tuple.dport = h->icmp.id;
		return 0;
	case ICMP_DEST_UNREACH:
		if (h->icmp.code > NR_ICMP_UNREACH)
			return PARSE_DROP(DROP_UNKNOWN_ICMPV4_CODE);
		if (h->icmp.code == ICMP_FRAG_NEEDED)
			p->flags |= PACKET_PATH_MTU;
		p->flags |= PACKET_ICMP_ERROR;
		return 0;
	case ICMP_TIME_EXCEEDED:
		if (h->icmp.code > ICMP_EXC_FRAGTIME)
			return PARSE_DROP(DROP_UNKNOWN_ICMPV4_CODE);
		p->flags |= PACKET_ICMP_ERROR;
		return 0;
	case ICMP_PARAMETERPROB:
		if (h->icmp.code > 2)
			return PARSE_DROP(DROP_UNKNOWN_ICMPV4_CODE);
		p->flags |= PACKET_ICMP_ERROR;
		return 0;
	}
	return PARSE_DROP(DROP_UNKNOWN_ICMPV4_TYPE);
}

static __always_inline int parse_icmp6(struct packet *p, const union l4_header *h)
{
	switch (h->icmp.type) {
	case ICMPV6_ECHO_REQUEST:
		p->tuple.sport = h->icmp.id;
		return 0;
	case ICMPV6_ECHO_REPLY:
		p->tuple.dport = h->icmp.id;
		return 0;
	case ICMPV6_PKT_TOOBIG:
		p->flags |= PACKET_ICMP_ERROR | PACKET_PATH_MTU;
		return 0;
	case ICMPV6_DEST_UNREACH:
		if (h->icmp.code > 8)
			return PARSE_DROP(DROP_UNKNOWN_ICMPV6_CODE);
		p->flags |= PACKET_ICMP_ERROR;
		return 0;
	case ICMPV6_TIME_EXCEED:
		if (h->icmp.code > 1)
			return PARSE_DROP(DROP_UNKNOWN_ICMPV6_CODE);
		p->flags |= PACKET_ICMP_ERROR;
		return 0;
	case ICMPV6_PARAMPROB:
		if (h->icmp.code > 10)
			return PARSE_DROP(DROP_UNKNOWN_ICMPV6_CODE);
		p->flags |= PACKET_ICMP_ERROR;
		return 0;
	case 130 ... 137: /* group membership, routers and neighbours */
	case 143:         /* group membership, version 2 */
		p->flags |= PACKET_CONTROL;
		return 0;
	}
	return PARSE_DROP(DROP_UNKNOWN_ICMPV6_TYPE);
}

/* Read the layer 4 header at l4_offset; `length` is what the IP header leaves for it. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 length,
				    const __u8 family)
{
	union l4_header h = {};
	int verdict;

	switch (p->tuple.proto) {
	case IPPROTO_TCP:
		if (length < 20 || bpf_skb_load_bytes(skb, p->l4_offset, &h, 16))
			return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
		verdict = parse_tcp(p, &h, length);
		break;
	case IPPROTO_UDP:
		if (length < 8 || bpf_skb_load_bytes(skb, p->l4_offset, &h, 8))
			return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
		verdict = parse_udp(p, &h, length);
		break;
	case IPPROTO_SCTP:
		if (length < 12 || bpf_skb_load_bytes(skb, p->l4_offset, &h, 8))
			return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
		p->tuple.sport = h.udp.sport;
		p->tuple.dport = h.udp.dport;
		/* for events only; what cannot be read is a chunk that says nothing */
		if (length > 12)
			bpf_skb_load_bytes(skb, p->l4_offset + 12, &p->icmp_type, 1);
		verdict = 0;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (p->tuple.proto != (family == FAMILY_IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
			return PARSE_DROP(DROP_UNKNOWN_L4_PROTOCOL);
		if (length < 8 || bpf_skb_load_bytes(skb, p->l4_offset, &h, 8))
			return PARSE_DROP(DROP_CT_TRUNCATED_OR_INVALID_HEADER);
		p->icmp_type = h.icmp.type;
		p->icmp_code = h.icmp.code;
		verdict = family == FAMILY_IPV4 ? parse_icmp4(p, &h) : parse_icmp6(p, &h);
		break;
	default:
		return PARSE_DROP(DROP_UNKNOWN_L4_PROTOCOL);
	}
	/* of an ICMP message type and code are known even where we do not like them */
	if (!verdict || p->icmp_type || p->icmp_code)
		p->flags |= PACKET_L4;
	return verdict;
}

static __always_inline bool header_checksum_ok(const struct iphdr *ip)
{
	const __u32 *w = (const __u32 *)ip;
	__u64 sum = (__u64)w[0] + w[1] + w[2] + w[3] + w[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum == 0xffff;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	void *data = headers(skb, ETH_HLEN + sizeof(struct iphdr));
	__u32 length, header;
	struct iphdr *ip;
	__u16 offset;
	int verdict;

	if (!data)
		return PARSE_DROP(DROP_INVALID_PACKET_DROPPED);
	ip = data + ETH_HLEN;
	header = ip->ihl * 4;
	length = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || length < header ||
	    length > skb->len - ETH_HLEN)
		return PARSE_DROP(DROP_INVALID_PACKET_DROPPED);
	p->tuple.saddr.v4 = ip->saddr;
	p->tuple.daddr.v4 = ip->daddr;
	p->tuple.proto = ip->protocol;
	p->flags |= PACKET_L3;
	if (header == sizeof(*ip) && !header_checksum_ok(ip))
		return PARSE_DROP(DROP_INVALID_PACKET_DROPPED);
	p->l4_offset = ETH_HLEN + header;
	offset = bpf_ntohs(ip->frag_off) & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK);
	if (likely_(!offset))
		return parse_l4(skb, p, length - header, FAMILY_IPV4);

	__u16 id = ip->id;

	p->flags |= PACKET_FRAGMENT;
	if (offset & IPV4_OFFSET_MASK) {
		p->flags |= PACKET_LATER_FRAGMENT;
		return fragment_ports4(p, id, offset & IPV4_OFFSET_MASK);
	}
	verdict = parse_l4(skb, p, length - header, FAMILY_IPV4);
	if (verdict < 0)
		return verdict;
	return fragment_remember4(p, id);
}

/* The options a hop-by-hop or destination header may hold need no look; routing must be done. */
static __always_inline int parse_ipv6_extensions(struct __sk_buff *skb, struct packet *p,
						 __u32 payload)
{
	__u8 next = p->tuple.proto;
	__u32 offset = ETH_HLEN + sizeof(struct ipv6hdr);
	__u32 end = offset + payload;
	__u32 fragment_id = 0;
	__u16 fragment = 0;
	int i, verdict;

	/* not unrolled: bounded loops need Linux 5.3, one copy keeps the verifier's work small */
#pragma clang loop unroll(disable)
	for (i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		__u8 ext[8];
		__u32 length;

		if (next != NEXT_HOP_BY_HOP && next != NEXT_ROUTING && next != NEXT_FRAGMENT &&
		    next != NEXT_AUTH && next != NEXT_DESTINATION)
			break;
		/* hop-by-hop options come first or not at all */
		if (next == NEXT_HOP_BY_HOP && i)
			return PARSE_DROP(DROP_INVALID_IPV6_EXTENSION_HEADER);
		if (offset + 8 > end || bpf_skb_load_bytes(skb, offset, ext, 8))
			return PARSE_DROP(DROP_INVALID_IPV6_EXTENSION_HEADER);
		length = (ext[1] + 1) * 8;
		if (next == NEXT_AUTH)
			length = (ext[1] + 2) * 4;
		if (next == NEXT_FRAGMENT) {
			if (p->flags & PACKET_FRAGMENT)
				return PARSE_DROP(DROP_INVALID_IPV6_EXTENSION_HEADER);
			fragment = (__u16)ext[2] << 8 | ext[3];
			fragment_id = *(__u32 *)&ext[4];
			length = 8;
			p->flags |= PACKET_FRAGMENT;
			if (fragment & ~7)
				p->flags |= PACKET_LATER_FRAGMENT;
		}
		/* a waypoint still ahead would hide the real destination from policy */
		if (next == NEXT_ROUTING && ext[3])
			return PARSE_DROP(DROP_INVALID_IPV6_EXTENSION_HEADER);
		next = ext[0];
		offset += length;
		if (offset > end)
			return PARSE_DROP(DROP_INVALID_IPV6_EXTENSION_HEADER);
		if (p->flags & PACKET_LATER_FRAGMENT)
			break;
	}
	p->tuple.proto = next;
	p->l4_offset = offset;
	if (next == NEXT_NONE || next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING ||
	    next == NEXT_FRAGMENT || next == NEXT_AUTH || next == NEXT_DESTINATION)
		return PARSE_DROP(DROP_INVALID_IPV6_EXTENSION_HEADER);
	if (p->flags & PACKET_LATER_FRAGMENT)
		return fragment_ports6(p, fragment_id, fragment >> 3);
	verdict = parse_l4(skb, p, end - offset, FAMILY_IPV6);
	if (verdict < 0 || !(p->flags & PACKET_FRAGMENT))
		return verdict;
	/* a lone "first" fragment is a whole packet; neighbour discovery must not be fragmented */
	if (p->flags & PACKET_CONTROL)
		return PARSE_DROP(DROP_FORBIDDEN_ICMPV6_MESSAGE);
	if (!(fragment & 1))
		return verdict;
	return fragment_remember6(p, fragment_id);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	void *data = headers(skb, ETH_HLEN + sizeof(struct ipv6hdr));
	struct ipv6hdr *ip;
	__u32 payload;

	if (!data)
		return PARSE_DROP(DROP_INVALID_PACKET_DROPPED);
	ip = data + ETH_HLEN;
	payload = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || payload > skb->len - ETH_HLEN - sizeof(*ip))
		return PARSE_DROP(DROP_INVALID_PACKET_DROPPED);
	__builtin_memcpy(&p->tuple.saddr, &ip->saddr, 16);
	__builtin_memcpy(&p->tuple.daddr, &ip->daddr, 16);
	p->tuple.proto = ip->nexthdr;
	p->flags |= PACKET_L3;
	p->l4_offset = ETH_HLEN + sizeof(*ip);
	if (likely_(ip->nexthdr == IPPROTO_TCP || ip->nexthdr == IPPROTO_UDP))
		return parse_l4(skb, p, payload, FAMILY_IPV6);
	return parse_ipv6_extensions(skb, p, payload);
}

static __always_inline int parse(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	return forget(p, family == FAMILY_IPV4 ? parse_ipv4(skb, p) : parse_ipv6(skb, p));
}

#endif
