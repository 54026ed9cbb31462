/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Answering for nobody: a packet that is refused becomes the answer of the address it was for, a TCP
 * reset or an ICMP error "port unreachable", to be sent back where it came from.
 */
#ifndef CILIUM_REFUSAL_H
#define CILIUM_REFUSAL_H

#include "delivery.h"
#include "rewrite.h"

#define REFUSAL_TTL 64

struct tcp_header {
	__u16 sport; /* be, as are all below */
	__u16 dport;
	__u32 seq;
	__u32 ack;
	__u8 offset; /* header length in words, upper half */
	__u8 flags;
	__u16 window;
	__u16 check;
	__u16 urgent;
};

/* What ends every answer: its layer 4 part, with as much of the refused packet as an error quotes. */
struct refusal {
	union {
		struct tcp_header tcp;
		struct {
			__u8 type;
			__u8 code;
			__u16 check;
			__u32 unused;
			__u8 quote[sizeof(struct ipv6hdr) + 8];
		} icmp;
	};
	__u32 length; /* of the layer 4 part */
};

/* Bytes from the layer 4 header on, by the IP header: short frames are padded on the wire. */
static __always_inline __u32 l4_length(struct __sk_buff *skb, const struct packet *p,
				       const __u8 family)
{
	const __u32 at = family == FAMILY_IPV4 ? 2 : 4;
	const __u32 begin = family == FAMILY_IPV4 ? ETH_HLEN : ETH_HLEN + sizeof(struct ipv6hdr);
	__u16 length = 0;

	bpf_skb_load_bytes(skb, ETH_HLEN + at, &length, sizeof(length));
	return begin + bpf_ntohs(length) - p->l4_offset;
}

/* RFC 9293, 3.10.7.1: an answer to what a closed port gets. */
static __always_inline bool reset_of(struct __sk_buff *skb, const struct packet *p,
				     struct refusal *r, const __u8 family)
{
	struct tcp_header got;
	__u32 length;

	if (p->tcp_flags & TCP_RST || bpf_skb_load_bytes(skb, p->l4_offset, &got, sizeof(got)))
		return false;
	r->length = sizeof(r->tcp);
	r->tcp.sport = got.dport;
	r->tcp.dport = got.sport;
	r->tcp.offset = sizeof(r->tcp) / 4 << 4;
	r->tcp.flags = TCP_RST;
	if (p->tcp_flags & TCP_ACK) {
		r->tcp.seq = got.ack;
		return true;
	}
	length = l4_length(skb, p, family) - (got.offset >> 4) * 4;
	length += !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
	r->tcp.ack = bpf_htonl(bpf_ntohl(got.seq) + length);
	r->tcp.flags |= TCP_ACK;
	return true;
}

/* Headers with options are not quoted: few have them, and a quote cut short says less than silence. */
static __always_inline bool unreachable_of(struct __sk_buff *skb, const struct packet *p,
					   struct refusal *r, const __u8 family)
{
	const __u32 header = family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (p->l4_offset != ETH_HLEN + header ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, r->icmp.quote, header + 8))
		return false;
	r->length = 8 + header + 8;
	r->icmp.type = family == FAMILY_IPV4 ? ICMP_DEST_UNREACH : ICMPV6_DEST_UNREACH;
	r->icmp.code = family == FAMILY_IPV4 ? ICMP_PORT_UNREACH : 4;
	return true;
}

/* Sum of the pseudo header, by the addresses of the packet that is answered. */
static __always_inline __u32 pseudo_sum(const struct packet *p, __u8 proto, __u32 length,
					const __u8 family)
{
	const __u32 size = family == FAMILY_IPV4 ? 4 : 16;
	__u32 rest[2] = {bpf_htonl(length), bpf_htonl(proto)};
	__u32 sum;

	sum = bpf_csum_diff(NULL, 0, (void *)&p->tuple.saddr, size, 0);
	sum = bpf_csum_diff(NULL, 0, (void *)&p->tuple.daddr, size, sum);
	return bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
}

/* Write the answer in place of the packet; `length` is that of its layer 4 part. */
static __always_inline int write_refusal(struct __sk_buff *skb, const struct packet *p,
					 const struct refusal *r, const __u32 length,
					 const __u8 family)
{
	const __u32 header = family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u8 proto = length == sizeof(r->tcp) ? IPPROTO_TCP :
		     family == FAMILY_IPV4    ? IPPROTO_ICMP :
						IPPROTO_ICMPV6;
	struct ethhdr *eth;
	__u8 mac[6];

	if (bpf_skb_change_tail(skb, ETH_HLEN + header + length, 0))
		return DELIVERY_DROP(DROP_ERROR_WRITING_TO_PACKET);
	eth = headers(skb, ETH_HLEN + header + length);
	if (!eth)
		return DELIVERY_DROP(DROP_ERROR_WRITING_TO_PACKET);
	__builtin_memcpy(mac, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, mac, 6);
	if (family == FAMILY_IPV4) {
		struct iphdr ip = {
			.version = 4,
			.ihl = 5,
			.tot_len = bpf_htons(header + length),
			.frag_off = bpf_htons(0x4000), /* never to be cut */
			.ttl = REFUSAL_TTL,
			.protocol = proto,
			.saddr = p->tuple.daddr.v4,
			.daddr = p->tuple.saddr.v4,
		};

		ip.check = folded_sum((__u32)bpf_csum_diff(NULL, 0, (void *)&ip, sizeof(ip), 0));
		__builtin_memcpy(eth + 1, &ip, sizeof(ip));
	} else {
		struct ipv6hdr ip = {
			.version = 6,
			.payload_len = bpf_htons(length),
			.nexthdr = proto,
			.hop_limit = REFUSAL_TTL,
		};

		__builtin_memcpy(&ip.saddr, &p->tuple.daddr, 16);
		__builtin_memcpy(&ip.daddr, &p->tuple.saddr, 16);
		__builtin_memcpy(eth + 1, &ip, sizeof(ip));
	}
	__builtin_memcpy((void *)(eth + 1) + header, r, length);
	return 0;
}

static __always_inline int refuse_by_reset(struct __sk_buff *skb, const struct packet *p,
					   const __u8 family)
{
	struct refusal r = {};

	if (!reset_of(skb, p, &r, family))
		return DELIVERY_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	r.tcp.check =
		folded_sum((__u32)bpf_csum_diff(NULL, 0, (void *)&r, sizeof(r.tcp),
						pseudo_sum(p, IPPROTO_TCP, sizeof(r.tcp), family)));
	return write_refusal(skb, p, &r, sizeof(r.tcp), family);
}

static __always_inline int refuse_by_error(struct __sk_buff *skb, const struct packet *p,
					   const __u8 family)
{
	const __u32 length =
		16 + (family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	struct refusal r = {};
	__u32 sum = 0;

	if (!unreachable_of(skb, p, &r, family))
		return DELIVERY_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	if (family == FAMILY_IPV6)
		sum = pseudo_sum(p, IPPROTO_ICMPV6, length, family);
	r.icmp.check = folded_sum((__u32)bpf_csum_diff(NULL, 0, (void *)&r, length, sum));
	return write_refusal(skb, p, &r, length, family);
}

/*
 * Turn the packet into the answer, addressed to who has sent it. Returns 0, or a drop where nothing
 * is to be said: to errors, resets and later fragments. The parsed form stays that of the packet.
 */
static __always_inline int make_refusal(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	if (p->flags & (PACKET_ICMP_ERROR | PACKET_LATER_FRAGMENT))
		return DELIVERY_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	if (p->tuple.proto == IPPROTO_TCP)
		return refuse_by_reset(skb, p, family);
	return refuse_by_error(skb, p, family);
}

#endif
