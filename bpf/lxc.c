// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The pod's own device, host side: everything a pod sends (tc ingress), and what the node's stack
 * sends to it (tc egress; traffic between pods never comes that way).
 *
 * One set of programs serves all pods. Who the pod is, is looked up by the device.
 */
#define SOURCE_FILE FILE_LXC

#include "lib/admit.h"
#include "lib/delivery.h"
#include "lib/host_firewall.h"
#include "lib/lb_pods.h"
#include "lib/neighbours.h"
#include "lib/proxy.h"
#include "lib/sockets.h"

/* What the stack shall know of a packet that leaves through it. */
static __always_inline __u32 mark_of(const struct packet *p)
{
	/* an answer carries the address that was asked */
	if (p->seen.reason == REASON_REPLY || p->seen.reason == REASON_RELATED)
		return MARK_SNAT_DONE;
	return mark_of_identity(p->src_identity);
}

/*
 * Find where the packet goes and who is there. The pod, when it is one of this node, is returned;
 * the rest is written into the packet, so that only one pointer lives on.
 */
static __always_inline const struct endpoint_info *find_way(struct packet *p, const __u8 family)
{
	const struct endpoint_info *local = endpoint_of_address(&p->tuple.daddr, family);
	const struct ipcache_info *remote;

	if (local) {
		p->dst_identity = local->identity;
		p->way = local->flags & ENDPOINT_HOST ? WAY_STACK : WAY_POD;
		return local->flags & ENDPOINT_HOST ? NULL : local;
	}
	remote = ipcache_of(&p->tuple.daddr, family);
	p->dst_identity = identity_or_world(remote);
	if (has_tunnel(remote)) {
		p->way = WAY_TUNNEL;
		p->node = remote->tunnel_ipv4;
	}
	return NULL;
}

/* Judge the packet, and send it the way that was found; `peer` is the pod it leads to, if any. */
static __always_inline int send_on(struct __sk_buff *skb, struct packet *p,
				   const struct endpoint_info *pod,
				   const struct endpoint_info *peer, const __u8 family)
{
	const struct endpoint_info *judge = peer;
	int verdict;

	if (peer && unlikely_(peer->flags & ENDPOINT_NOT_READY)) {
		p->endpoint = peer->id;
		p->direction = DIR_INGRESS;
		return DROP(DROP_EP_NOT_READY);
	}
	barrier();
	if (p->way == WAY_STACK)
		judge = node_endpoint();
	opaque(judge);
	verdict = admit(skb, p, pod, judge, family);
	if (unlikely_(verdict))
		return verdict < 0 ? verdict : to_proxy(skb, family);
	if (unlikely_(p->answers)) {
		verdict = answer_as_frontend(skb, p, family);
		if (verdict)
			return verdict;
	}
	if (peer)
		return deliver_to_pod(skb, p, peer, family);
	switch (p->way) {
	case WAY_TUNNEL:
		return deliver_to_node(skb, p, p->node, p->src_identity, family);
	case WAY_STACK:
		return deliver_to_stack(skb, p, TRACE_TO_STACK, mark_of(p), family);
	}
	return deliver_to_world(skb, p, mark_of(p), family);
}

/*
 * What is for no pod may be for a service: go on in the program that knows what to do. Returns 0
 * when it is for none.
 */
static __always_inline int to_service(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const bool v4 = family == FAMILY_IPV4;
	__u32 call;

	if (is_hairpin(&p->tuple.daddr, family))
		call = v4 ? CALL_HAIRPIN_BACK_IPV4 : CALL_HAIRPIN_BACK_IPV6;
	else if (unlikely_(p->flags & PACKET_ICMP_ERROR))
		call = v4 ? CALL_SERVICE_ERROR_IPV4 : CALL_SERVICE_ERROR_IPV6;
	else if (lb_find(&p->tuple.daddr, p->tuple.dport, p->tuple.proto, true, &p->found, family))
		call = v4 ? CALL_SERVICE_IPV4 : CALL_SERVICE_IPV6;
	else
		return 0;
	bpf_tail_call_(map_of(CALLS), skb, call);
	return DROP(DROP_MISSED_TAIL_CALL);
}

/* From here on the packet is well-formed and really the pod's. */
static __always_inline int send(struct __sk_buff *skb, struct packet *p,
				const struct endpoint_info *pod, const __u8 family)
{
	const struct endpoint_info *peer = find_way(p, family);
	int verdict;

	if (pods_balanced() && (p->way == WAY_WORLD || p->way == WAY_STACK)) {
		verdict = forget(p, to_service(skb, p, family));
		if (verdict)
			return verdict;
	}
	return send_on(skb, p, pod, peer, family);
}

static __always_inline int from_container(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	const void *address;
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	p->endpoint = pod->id;
	p->src_identity = pod->identity;
	p->origin = origin_on_wire(skb);
	if (unlikely_(pod->flags & ENDPOINT_NOT_READY))
		return DROP(DROP_EP_NOT_READY);
	verdict = parse(skb, p, family);
	trace_from(skb, p, TRACE_FROM_LXC, family);
	if (unlikely_(verdict < 0)) {
		if (family == FAMILY_IPV4 && p->tuple.proto == IPPROTO_IGMP) {
			count(DROP_IGMP_HANDLED, DIR_EGRESS, SOURCE_FILE, __LINE__, skb->len);
			return TC_ACT_SHOT;
		}
		return verdict;
	}
	if (unlikely_(p->flags & PACKET_CONTROL)) {
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_CONTAINER_NDP);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	address = family == FAMILY_IPV4 ? (const void *)&pod->ipv4 : (const void *)pod->ipv6;
	if (!same_address(&p->tuple.saddr, address, family) ||
	    same_address(&p->tuple.daddr, address, family))
		return DROP(DROP_INVALID_SOURCE_IP);
	if (!is_unicast(&p->tuple.daddr, family)) {
		/* a link-local address may be the one of pods that serve themselves */
		if (!is_hairpin(&p->tuple.daddr, family))
			return DROP(DROP_UNKNOWN_L3_TARGET_ADDRESS);
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_HAIRPIN_BACK_IPV4 :
						       CALL_HAIRPIN_BACK_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	return send(skb, p, pod, family);
}

int tail_from_container_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, from_container(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_from_container_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, from_container(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

/* From the programs that change where a packet goes: find the way there, and go on. */
static __always_inline int send_translated(struct __sk_buff *skb, struct packet *p,
					   const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	p->way = WAY_WORLD;
	return send_on(skb, p, pod, find_way(p, family), family);
}

int tail_send_translated_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, send_translated(skb, p, FAMILY_IPV4), FAMILY_IPV4) :
		   TC_ACT_SHOT;
}

int tail_send_translated_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, send_translated(skb, p, FAMILY_IPV6), FAMILY_IPV6) :
		   TC_ACT_SHOT;
}

static __always_inline int from_container_arp(struct __sk_buff *skb, struct packet *p)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	p->endpoint = pod->id;
	p->src_identity = pod->identity;
	return answer_arp(skb, pod);
}

int tail_from_container_arp(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, from_container_arp(skb, p), FAMILY_IPV4) : TC_ACT_SHOT;
}

static __always_inline int from_container_ndp(struct __sk_buff *skb, struct packet *p)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	p->endpoint = pod->id;
	p->src_identity = pod->identity;
	verdict = parse(skb, p, FAMILY_IPV6);
	return verdict ? verdict : answer_ndp(skb, p, pod);
}

int tail_from_container_ndp(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, from_container_ndp(skb, p), FAMILY_IPV6) : TC_ACT_SHOT;
}

int cil_from_container(struct __sk_buff *skb)
{
	if (skb->vlan_present)
		return refuse(skb, DROP(DROP_VLAN_FILTERED), DIR_EGRESS);
	switch (skb->protocol) {
	case be16(ETH_P_IP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_CONTAINER_IPV4);
		break;
	case be16(ETH_P_IPV6):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_CONTAINER_IPV6);
		break;
	case be16(ETH_P_ARP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_CONTAINER_ARP);
		break;
	default:
		/* below 0x600 the field is a length, and the frame not Ethernet II */
		return refuse(skb,
			      bpf_ntohs(skb->protocol) < ETH_P_802_3_MIN ?
				      DROP(DROP_UNSUPPORTED_L2_PROTOCOL) :
				      DROP(DROP_UNSUPPORTED_L3_PROTOCOL),
			      DIR_EGRESS);
	}
	return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_EGRESS);
}

/* Who sent a packet that the stack hands over: as marked by our own programs, or by its address. */
static __always_inline __u32 stack_identity(struct __sk_buff *skb, const struct packet *p,
					    const __u8 family)
{
	__u32 mark = skb->mark, identity = ID_UNKNOWN;

	switch (mark & MARK_MASK) {
	case MARK_HOST:
		return ID_HOST;
	case MARK_IDENTITY:
	case MARK_PROXY_INGRESS:
	case MARK_PROXY_EGRESS:
		identity = identity_of_mark(mark);
	}
	if (identity)
		return identity;
	return identity_of_address(&p->tuple.saddr, family);
}

/*
 * What a proxy sends to the node itself, with the pod's address, never leaves the stack, so that no
 * connection is known of it. The answer comes here, and the proxy's socket tells.
 */
static __always_inline bool answers_proxy(struct __sk_buff *skb, const struct packet *p,
					  const __u8 family)
{
	if (p->src_identity != ID_HOST || p->origin != ORIGIN_STACK || !proxies_on())
		return false;
	if (is_tcp(p))
		return !ct_opens(p) && node_connected(skb, &p->tuple, family);
	return p->tuple.proto == IPPROTO_UDP && node_bound(skb, &p->tuple, family);
}

static __always_inline int to_container(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex), *node = NULL;
	const void *address;
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	p->endpoint = pod->id;
	p->dst_identity = pod->identity;
	p->origin = origin_of(skb);
	if (pod->flags & ENDPOINT_NOT_READY)
		return DROP(DROP_EP_NOT_READY);
	verdict = parse(skb, p, family);
	if (verdict < 0) {
		if (family == FAMILY_IPV4 && p->tuple.proto == IPPROTO_IGMP) {
			count(DROP_IGMP_HANDLED, DIR_INGRESS, SOURCE_FILE, __LINE__, skb->len);
			return TC_ACT_SHOT;
		}
		return verdict;
	}
	/* the node itself looking for the pod's address */
	if (p->flags & PACKET_CONTROL)
		return TC_ACT_OK;
	p->src_identity = stack_identity(skb, p, family);
	trace_from(skb, p, p->origin == ORIGIN_STACK ? TRACE_FROM_STACK : TRACE_FROM_PROXY, family);
	address = family == FAMILY_IPV4 ? (const void *)&pod->ipv4 : (const void *)pod->ipv6;
	if (!same_address(&p->tuple.daddr, address, family))
		return DROP(DROP_UNKNOWN_L3_TARGET_ADDRESS);
	if (unlikely_(answers_proxy(skb, p, family))) {
		see_alone(skb, p);
		return bounce_to_proxy(skb, p, family);
	}
	if (p->src_identity == ID_HOST && p->origin != ORIGIN_PROXY_INGRESS)
		node = node_endpoint();
	opaque(node);
	verdict = admit(skb, p, node, pod, family);
	if (unlikely_(verdict))
		return verdict < 0 ? verdict : bounce_to_proxy(skb, p, family);
	if (unlikely_(p->answers)) {
		verdict = answer_as_frontend(skb, p, family);
		if (verdict)
			return verdict;
	}
	trace_to(skb, p, TRACE_TO_LXC, pod->id, family);
	count_forward(skb, DIR_INGRESS);
	return TC_ACT_OK;
}

int tail_to_container_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, to_container(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_to_container_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, to_container(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

int cil_to_container(struct __sk_buff *skb)
{
	switch (skb->protocol) {
	case be16(ETH_P_IP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_TO_CONTAINER_IPV4);
		break;
	case be16(ETH_P_IPV6):
		bpf_tail_call_(map_of(CALLS), skb, CALL_TO_CONTAINER_IPV6);
		break;
	case be16(ETH_P_ARP):
		return TC_ACT_OK;
	default:
		return refuse(skb, DROP(DROP_UNSUPPORTED_L3_PROTOCOL), DIR_INGRESS);
	}
	return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_INGRESS);
}
