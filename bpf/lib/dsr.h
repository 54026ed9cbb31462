/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Direct server return: the node that is asked sends the client's packet on with the client's address
 * and says in an option which frontend it was, and the backend's node answers the client with it.
 *
 * IPv4 has an option of eight bytes, IPv6 a destination option of twenty-four. TCP needs it on the
 * SYN alone, datagrams on each. The backend's node takes it out, so that pods never see it.
 */
#ifndef CILIUM_DSR_H
#define CILIUM_DSR_H

#include "delivery.h"
#include "nat.h"

#define DSR_DROP(reason) DROP_AT(FILE_NODEPORT, reason)

#define DSR_OPTION4 0x9a /* copied into fragments, of no class in use */
#define DSR_OPTION6 0x1b /* skipped by who does not know it */

struct dsr_option4 {
	__u8 type;
	__u8 length;
	__u16 port;
	__u32 addr;
};

struct dsr_option6 {
	__u8 next;
	__u8 words; /* of eight bytes, without the first */
	__u8 type;
	__u8 length;
	__u8 addr[16];
	__u16 port;
	__u8 pad[2]; /* an option that pads: 1, 0 */
};

/* Options of this many bytes is what a packet with nothing else has. */
static __always_inline bool may_have_option(const struct packet *p, const __u8 family)
{
	if (family == FAMILY_IPV4)
		return p->l4_offset == ETH_HLEN + sizeof(struct iphdr) + sizeof(struct dsr_option4);
	return p->l4_offset == ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct dsr_option6);
}

/* Make room between the IP header and what follows, or close it. The MAC header moves along. */
static __always_inline long resize(struct __sk_buff *skb, int bytes)
{
	return bpf_skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
}

static __always_inline int add_option4(struct __sk_buff *skb, struct packet *p,
				       const struct tuple *asked)
{
	struct dsr_option4 option = {
		.type = DSR_OPTION4,
		.length = sizeof(option),
		.port = asked->dport,
		.addr = asked->daddr.v4,
	};
	__u32 words[7] = {};
	struct iphdr *ip = (struct iphdr *)words;

	/* there is room for one more option, but nobody sends any */
	if (p->l4_offset != ETH_HLEN + sizeof(*ip) || resize(skb, sizeof(option)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, words, sizeof(*ip)))
		return DSR_DROP(DROP_UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP);
	ip->ihl = sizeof(words) / 4;
	ip->tot_len = bpf_htons(bpf_ntohs(ip->tot_len) + sizeof(option));
	ip->check = 0;
	__builtin_memcpy(&words[5], &option, sizeof(option));
	ip->check = folded_sum((__u64)words[0] + words[1] + words[2] + words[3] + words[4] +
			       words[5] + words[6]);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, words, sizeof(words), 0))
		return DSR_DROP(DROP_ERROR_WRITING_TO_PACKET);
	p->l4_offset += sizeof(option);
	return 0;
}

static __always_inline int add_option6(struct __sk_buff *skb, struct packet *p,
				       const struct tuple *asked)
{
	struct dsr_option6 option = {
		.words = sizeof(option) / 8 - 1,
		.type = DSR_OPTION6,
		.length = sizeof(option) - 4 - 2,
		.port = asked->dport,
		.pad = {1, 0},
	};
	struct ipv6hdr ip;

	__builtin_memcpy(option.addr, &asked->daddr, 16);
	if (p->l4_offset != ETH_HLEN + sizeof(ip) || resize(skb, sizeof(option)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return DSR_DROP(DROP_UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP);
	option.next = ip.nexthdr;
	ip.nexthdr = NEXT_DESTINATION;
	ip.payload_len = bpf_htons(bpf_ntohs(ip.payload_len) + sizeof(option));
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(ip), &option, sizeof(option),
				BPF_F_RECOMPUTE_CSUM))
		return DSR_DROP(DROP_ERROR_WRITING_TO_PACKET);
	p->l4_offset += sizeof(option);
	return 0;
}

/* Say in the packet which frontend was asked. Returns 0 or a drop. */
static __always_inline int add_option(struct __sk_buff *skb, struct packet *p,
				      const struct tuple *asked, const __u8 family)
{
	return family == FAMILY_IPV4 ? add_option4(skb, p, asked) : add_option6(skb, p, asked);
}

static __always_inline int take_option4(struct __sk_buff *skb, struct mapping *asked)
{
	__u32 words[7];
	struct iphdr *ip = (struct iphdr *)words;
	struct dsr_option4 *option = (struct dsr_option4 *)&words[5];

	if (bpf_skb_load_bytes(skb, ETH_HLEN, words, sizeof(words)))
		return DSR_DROP(DROP_INVALID_PACKET_DROPPED);
	if (option->type != DSR_OPTION4 || option->length != sizeof(*option))
		return 0;
	asked->address.v4 = option->addr;
	asked->port = option->port;
	ip->ihl = sizeof(*ip) / 4;
	ip->tot_len = bpf_htons(bpf_ntohs(ip->tot_len) - sizeof(*option));
	ip->check = 0;
	ip->check = folded_sum((__u64)words[0] + words[1] + words[2] + words[3] + words[4]);
	if (resize(skb, -(int)sizeof(*option)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, words, sizeof(*ip), BPF_F_RECOMPUTE_CSUM))
		return DSR_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 1;
}

static __always_inline int take_option6(struct __sk_buff *skb, struct mapping *asked)
{
	struct dsr_option6 option;
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), &option, sizeof(option)))
		return DSR_DROP(DROP_INVALID_PACKET_DROPPED);
	if (ip.nexthdr != NEXT_DESTINATION || option.type != DSR_OPTION6 ||
	    option.words != sizeof(option) / 8 - 1 || option.length != sizeof(option) - 4 - 2)
		return 0;
	__builtin_memcpy(&asked->address, option.addr, 16);
	asked->port = option.port;
	ip.nexthdr = option.next;
	ip.payload_len = bpf_htons(bpf_ntohs(ip.payload_len) - sizeof(option));
	if (resize(skb, -(int)sizeof(option)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM))
		return DSR_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 1;
}

/* Take the option out and read it. 1 is done, 0 is no option of ours, less than 0 a drop. */
static __always_inline int take_option(struct __sk_buff *skb, struct mapping *asked,
				       const __u8 family)
{
	return family == FAMILY_IPV4 ? take_option4(skb, asked) : take_option6(skb, asked);
}

#endif
