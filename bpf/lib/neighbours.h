/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The gateway of the pods exists only here: ARP requests and neighbour solicitations are answered
 * with the MAC address of the host-side device, whatever address they ask for but the pod's own.
 */
#ifndef CILIUM_NEIGHBOURS_H
#define CILIUM_NEIGHBOURS_H

#include "delivery.h"
#include "rewrite.h"

#define NEIGHBOURS_DROP(reason) DROP_AT(FILE_NEIGHBOURS, reason)

struct arp_packet {
	struct ethhdr eth;
	__u16 hardware; /* be, as are all below */
	__u16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

#define ARP_REQUEST 1

static __always_inline int answer_arp(struct __sk_buff *skb, const struct endpoint_info *pod)
{
	struct arp_packet *arp = headers(skb, sizeof(*arp));
	__u32 sender, target;

	if (!arp)
		return NEIGHBOURS_DROP(DROP_INVALID_PACKET_DROPPED);
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_length != 6 || arp->protocol_length != 4)
		return NEIGHBOURS_DROP(DROP_INVALID_PACKET_DROPPED);
	__builtin_memcpy(&sender, arp->sender_ip, 4);
	__builtin_memcpy(&target, arp->target_ip, 4);
	/* a probe for duplicates of the pod's own address finds none, an answer to us is not needed */
	if (arp->operation != bpf_htons(ARP_REQUEST) || target == pod->ipv4)
		return TC_ACT_SHOT;
	if (sender != pod->ipv4)
		return NEIGHBOURS_DROP(DROP_INVALID_SOURCE_IP);
	__builtin_memcpy(arp->eth.h_dest, arp->eth.h_source, 6);
	__builtin_memcpy(arp->eth.h_source, pod->node_mac, 6);
	arp->operation = bpf_htons(2);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	__builtin_memcpy(arp->target_ip, &sender, 4);
	__builtin_memcpy(arp->sender_mac, pod->node_mac, 6);
	__builtin_memcpy(arp->sender_ip, &target, 4);
	return bpf_redirect_peer(pod->ifindex, 0);
}

enum ndp {
	NDP_ROUTER_SOLICITATION = 133,
	NDP_ROUTER_ADVERTISEMENT = 134,
	NDP_NEIGHBOUR_SOLICITATION = 135,
	NDP_NEIGHBOUR_ADVERTISEMENT = 136,
	NDP_REDIRECT = 137,
};

/* A neighbour message with the one option that carries a MAC address. */
struct ndp_message {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 flags;
	__u8 target[16];
	__u8 option;
	__u8 option_length;
	__u8 mac[6];
};

struct ndp_pseudo_header {
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 length;
	__u32 next;
};

#define NDP_FLAGS_ANSWER        0x60000000 /* solicited, override */
#define NDP_SOLICITATION_LENGTH 24         /* without options */

static __always_inline int answer_solicitation(struct __sk_buff *skb, const struct packet *p,
					       const struct endpoint_info *pod,
					       const union address *target)
{
	const __u32 length = ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct ndp_message);
	struct ndp_message answer = {
		.type = NDP_NEIGHBOUR_ADVERTISEMENT,
		.flags = bpf_htonl(NDP_FLAGS_ANSWER),
		.option = 2, /* target's link-layer address */
		.option_length = 1,
	};
	struct ndp_pseudo_header pseudo = {
		.length = bpf_htonl(sizeof(answer)),
		.next = bpf_htonl(IPPROTO_ICMPV6),
	};
	struct ipv6hdr *ip;
	struct ethhdr *eth;

	__builtin_memcpy(answer.target, target, 16);
	__builtin_memcpy(answer.mac, pod->node_mac, 6);
	__builtin_memcpy(pseudo.saddr, target, 16);
	__builtin_memcpy(pseudo.daddr, &p->tuple.saddr, 16);
	answer.check = folded_sum(
		(__u32)bpf_csum_diff(NULL, 0, (void *)&answer, sizeof(answer),
				     bpf_csum_diff(NULL, 0, (void *)&pseudo, sizeof(pseudo), 0)));

	/* the solicitation may have had no option, or others besides */
	if (bpf_skb_change_tail(skb, length, 0))
		return NEIGHBOURS_DROP(DROP_ERROR_WRITING_TO_PACKET);
	eth = headers(skb, length);
	if (!eth)
		return NEIGHBOURS_DROP(DROP_ERROR_WRITING_TO_PACKET);
	__builtin_memcpy(eth->h_dest, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, pod->node_mac, 6);
	ip = (void *)(eth + 1);
	ip->payload_len = bpf_htons(sizeof(answer));
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = 255;
	__builtin_memcpy(&ip->saddr, target, 16);
	__builtin_memcpy(&ip->daddr, &p->tuple.saddr, 16);
	__builtin_memcpy(ip + 1, &answer, sizeof(answer));
	return bpf_redirect_peer(pod->ifindex, 0);
}

/*
 * Control messages of a pod. Solicitations are answered; what a host tells the routers and groups of
 * its link is for us alone and ends here; what only a router may say is refused.
 */
static __always_inline int answer_ndp(struct __sk_buff *skb, const struct packet *p,
				      const struct endpoint_info *pod)
{
	union address target = {};
	bool unspecified = !(p->tuple.saddr.halves[0] | p->tuple.saddr.halves[1]);
	__u8 hops;

	if (!unspecified && !is_link_local6(&p->tuple.saddr) &&
	    !same_address(&p->tuple.saddr, pod->ipv6, FAMILY_IPV6))
		return NEIGHBOURS_DROP(DROP_INVALID_SOURCE_IP);
	if (p->icmp_type == NDP_ROUTER_ADVERTISEMENT || p->icmp_type == NDP_REDIRECT)
		return NEIGHBOURS_DROP(DROP_FORBIDDEN_ICMPV6_MESSAGE);
	if (p->icmp_type != NDP_NEIGHBOUR_SOLICITATION) {
		count(DROP_MULTICAST_HANDLED, DIR_EGRESS, FILE_NEIGHBOURS, __LINE__, skb->len);
		return TC_ACT_SHOT;
	}
	if (skb->len < p->l4_offset + NDP_SOLICITATION_LENGTH ||
	    bpf_skb_load_bytes(skb, p->l4_offset + 8, &target, 16) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &hops, 1) ||
	    hops != 255 || p->icmp_code || target.bytes[0] == 0xff)
		return NEIGHBOURS_DROP(DROP_INVALID_PACKET_DROPPED);
	/* duplicate address detection: nobody else has the pod's address */
	if (unspecified || same_address(&target, pod->ipv6, FAMILY_IPV6)) {
		count(DROP_MULTICAST_HANDLED, DIR_EGRESS, FILE_NEIGHBOURS, __LINE__, skb->len);
		return TC_ACT_SHOT;
	}
	return answer_solicitation(skb, p, pod, &target);
}

#endif
