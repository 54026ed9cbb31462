// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * cilium_host: the way of the node's own processes to every pod, and of packets back into the node.
 */
#define SOURCE_FILE FILE_HOST

#include "lib/admit.h"
#include "lib/delivery.h"
#include "lib/host_firewall.h"
#include "lib/proxy.h"

/* What the pod's device shall know of a sender: who it is, and whether it is a proxy. */
static __always_inline __u32 mark_of_sender(const struct __sk_buff *skb, const struct packet *p)
{
	if (p->origin != ORIGIN_STACK)
		return mark_with(skb->mark & MARK_MASK, p->src_identity);
	return p->src_identity == ID_HOST ? MARK_HOST : mark_of_identity(p->src_identity);
}

/* Out of cilium_host: the node, or a proxy on it, speaks with a pod, here or elsewhere. */
static __always_inline int from_host(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local, *sender;
	const struct ipcache_info *info;
	int verdict;

	verdict = parse(skb, p, family);
	/* the device's own chatter on its link */
	if (p->flags & PACKET_CONTROL || p->tuple.proto == IPPROTO_IGMP)
		return TC_ACT_OK;
	if (verdict < 0)
		return verdict;
	sender = endpoint_of_address(&p->tuple.saddr, family);
	p->src_identity = sender ? sender->identity :
				   identity_or_world(ipcache_of(&p->tuple.saddr, family));
	p->origin = origin_of(skb);
	trace_from(skb, p, p->origin == ORIGIN_STACK ? TRACE_FROM_HOST : TRACE_FROM_PROXY, family);
	local = endpoint_of_address(&p->tuple.daddr, family);
	if (local) {
		if (local->flags & ENDPOINT_HOST)
			return TC_ACT_OK;
		verdict = write_macs(skb, local->node_mac, local->mac);
		if (verdict)
			return verdict;
		/* judged on the pod's device, by the identity found here */
		skb->mark = mark_of_sender(skb, p);
		return bpf_redirect(local->ifindex, 0);
	}
	info = ipcache_of(&p->tuple.daddr, family);
	p->dst_identity = identity_or_world(info);
	if (!info || !(info->flags & IPCACHE_HAS_TUNNEL) || info->flags & IPCACHE_SKIP_TUNNEL)
		return DROP(DROP_STALE_OR_UNROUTABLE_IP);
	p->node = info->tunnel_ipv4;
	if (sender && (!(sender->flags & ENDPOINT_HOST) || node_endpoint())) {
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_HOST_TUNNEL_IPV4 :
						       CALL_HOST_TUNNEL_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	see_alone(skb, p);
	return deliver_to_node(skb, p, p->node, p->src_identity, family);
}

int tail_from_host_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, from_host(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_from_host_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, from_host(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

int cil_from_host(struct __sk_buff *skb)
{
	switch (skb->protocol) {
	case be16(ETH_P_IP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_HOST_IPV4);
		break;
	case be16(ETH_P_IPV6):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_HOST_IPV6);
		break;
	default:
		return TC_ACT_OK;
	}
	return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_EGRESS);
}

/* To a pod of another node: of a proxy, with the address of a pod, or of a node with a policy. */
static __always_inline int host_to_tunnel(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	const struct endpoint_info *sender = endpoint_of_address(&p->tuple.saddr, family);
	int verdict;

	if (sender && sender->flags & ENDPOINT_HOST)
		sender = node_endpoint();
	opaque(sender);
	if (!sender)
		return DROP(DROP_EP_NOT_READY);
	p->endpoint = sender->id;
	verdict = admit(skb, p, sender, NULL, family);
	if (verdict)
		return verdict < 0 ? verdict : bounce_to_proxy(skb, p, family);
	return deliver_to_node(skb, p, p->node, p->src_identity, family);
}

int tail_host_tunnel_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, host_to_tunnel(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_host_tunnel_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, host_to_tunnel(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

/*
 * Into cilium_host or its peer: what the stack takes in was judged where it came from. What an egress
 * hook has sent here for a proxy may still need its listener.
 */
int cil_to_host(struct __sk_buff *skb)
{
	count_forward(skb, DIR_INGRESS);
	if (unlikely_((skb->mark & (MARK_MASK | MARK_LISTENER)) ==
		      (MARK_TO_PROXY | MARK_LISTENER))) {
		bpf_tail_call_(map_of(CALLS), skb,
			       skb->protocol == be16(ETH_P_IP) ? CALL_TO_HOST_IPV4 :
								 CALL_TO_HOST_IPV6);
		return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_INGRESS);
	}
	return TC_ACT_OK;
}
