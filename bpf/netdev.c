// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The node's own network device: where the world comes in, and where pods' traffic with it is
 * translated.
 */
#define SOURCE_FILE FILE_NETDEV

#include "lib/admit.h"
#include "lib/answers.h"
#include "lib/delivery.h"
#include "lib/dsr.h"
#include "lib/host_firewall.h"
#include "lib/nat.h"
#include "lib/nodeport.h"
#include "lib/proxy.h"

/* Pods of other nodes come through the tunnel, those of this one from their own devices. */
static __always_inline bool comes_otherwise(const struct packet *p, const struct ipcache_info *info,
					    const __u8 family)
{
	if (info && config_of()->flags & CONFIG_TUNNEL && is_cluster_identity(info->identity) &&
	    info->flags & IPCACHE_HAS_TUNNEL)
		return true;
	return endpoint_of_address(&p->tuple.saddr, family);
}

/*
 * What services have to do with a packet that is for no pod as it is, or comes from another node that
 * was asked: the programs of nodeport.c go on. 0 is nothing, less than 0 a drop.
 */
static __always_inline int serve_nodes(struct __sk_buff *skb, struct packet *p,
				       const struct endpoint_info *local, const __u8 family)
{
	const bool v4 = family == FAMILY_IPV4;
	const struct ipcache_info *info;
	__u32 call;

	if (skb->cb[CONTROL_OPTION] == OPTION_TAKEN) {
		p->lb_rev_nat = LB_OTHER_FRONTEND;
		p->asked_other = true;
		return 0;
	}
	if (local && unlikely_(may_have_option(p, family)) && !skb->cb[CONTROL_OPTION]) {
		call = v4 ? CALL_NODES_LEARN_IPV4 : CALL_NODES_LEARN_IPV6;
	} else if (local && !(local->flags & ENDPOINT_HOST)) {
		return 0;
	} else if (unlikely_(p->flags & PACKET_ICMP_ERROR)) {
		call = v4 ? CALL_NODES_ERROR_IPV4 : CALL_NODES_ERROR_IPV6;
	} else {
		if (!asks_service(p, local, family))
			return 0;
		info = ipcache_of(&p->tuple.saddr, family);
		p->src_identity = identity_or_world(info);
		if (comes_otherwise(p, info, family))
			return DROP(DROP_INVALID_SOURCE_IP);
		call = v4 ? CALL_NODES_SERVE_IPV4 : CALL_NODES_SERVE_IPV6;
	}
	bpf_tail_call_(map_of(CALLS), skb, call);
	return DROP(DROP_MISSED_TAIL_CALL);
}

/*
 * From the network. Answers to translated packets get their address back; what is for a local pod
 * is judged and delivered; everything else is the node's own business, well-formed or not.
 */
static __always_inline int from_netdev(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local;
	const struct ipcache_info *info;
	union address mine = {};
	int verdict, restored = 0;

	p->origin = origin_on_wire(skb);
	verdict = parse(skb, p, family);
	if (!(p->flags & PACKET_L3))
		return TC_ACT_OK;
	if ((masquerade_on(family) || nodes_served()) && !verdict) {
		masquerade_address(&mine, family);
		if (same_address(&p->tuple.daddr, &mine, family)) {
			restored = restore(skb, p, family);
			if (restored < 0)
				return restored;
			if (restored == RESTORE_CLIENT) {
				bpf_tail_call_(map_of(CALLS), skb,
					       family == FAMILY_IPV4 ? CALL_NODES_RETURN_IPV4 :
								       CALL_NODES_RETURN_IPV6);
				return DROP(DROP_MISSED_TAIL_CALL);
			}
		}
	}
	local = endpoint_of_address(&p->tuple.daddr, family);
	if (nodes_served() && !verdict && !restored) {
		verdict = forget(p, serve_nodes(skb, p, local, family));
		if (verdict)
			return verdict;
	}
	if (local)
		p->dst_identity = local->identity;
	if (!local || local->flags & ENDPOINT_HOST) {
		if (restored && !local)
			return DROP(DROP_STALE_OR_UNROUTABLE_IP);
		if (unlikely_(is_node_address(local, &p->tuple.daddr, family) && node_endpoint())) {
			p->restored = restored;
			bpf_tail_call_(map_of(CALLS), skb,
				       family == FAMILY_IPV4 ? CALL_HOST_INGRESS_IPV4 :
							       CALL_HOST_INGRESS_IPV6);
			return DROP(DROP_MISSED_TAIL_CALL);
		}
		trace_from(skb, p, TRACE_FROM_NETWORK, family);
		return TC_ACT_OK;
	}
	p->endpoint = local->id;
	if (verdict < 0)
		return verdict;
	info = ipcache_of(&p->tuple.saddr, family);
	p->src_identity = identity_or_world(info);
	trace_from(skb, p, TRACE_FROM_NETWORK, family);
	if (p->flags & PACKET_CONTROL)
		return DROP(DROP_FORBIDDEN_ICMPV6_MESSAGE);
	if (!restored && comes_otherwise(p, info, family))
		return DROP(DROP_INVALID_SOURCE_IP);
	if (local->flags & ENDPOINT_NOT_READY)
		return DROP(DROP_EP_NOT_READY);
	verdict = admit(skb, p, NULL, local, family);
	if (unlikely_(verdict))
		return verdict < 0 ? verdict : to_proxy(skb, family);
	if (unlikely_(p->answers)) {
		verdict = answer_as_frontend(skb, p, family);
		if (verdict)
			return verdict;
	}
	return deliver_to_pod(skb, p, local, family);
}

int tail_from_netdev_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, from_netdev(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_from_netdev_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, from_netdev(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

/* To the node itself, where it has a policy. */
static __always_inline int host_ingress(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *node = node_endpoint();
	const struct ipcache_info *info = ipcache_of(&p->tuple.saddr, family);
	__s32 verdict = p->verdict;

	if (!node)
		return TC_ACT_OK;
	p->endpoint = node->id;
	p->src_identity = identity_or_world(info);
	p->dst_identity = ID_HOST;
	trace_from(skb, p, TRACE_FROM_NETWORK, family);
	if (serves_the_link(p))
		return TC_ACT_OK;
	/* what cannot be judged passes only while nobody asks for judgement */
	if (verdict < 0)
		return node->flags & ENDPOINT_ENFORCE_INGRESS ? verdict : TC_ACT_OK;
	if (!p->restored && comes_otherwise(p, info, family))
		return HOST_DROP(DROP_INVALID_SOURCE_IP);
	verdict = admit(skb, p, NULL, node, family);
	if (verdict)
		return verdict < 0 ? verdict : to_proxy(skb, family);
	return deliver_to_stack(skb, p, TRACE_TO_STACK, skb->mark, family);
}

int tail_host_ingress_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, host_ingress(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_host_ingress_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, host_ingress(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

int cil_from_netdev(struct __sk_buff *skb)
{
	skb->cb[CONTROL_OPTION] = OPTION_NOT_SOUGHT;
	switch (skb->protocol) {
	case be16(ETH_P_IP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_NETDEV_IPV4);
		break;
	case be16(ETH_P_IPV6):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_NETDEV_IPV6);
		break;
	default:
		return TC_ACT_OK;
	}
	return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_INGRESS);
}

/* Did one of our programs send this packet of a pod, and judge it? */
static __always_inline bool was_judged(const struct __sk_buff *skb)
{
	return (skb->mark & MARK_MASK) == MARK_IDENTITY ||
	       (skb->mark & MARK_MASK) == MARK_SNAT_DONE;
}

/* Out of the device. A pod's packet has left the data plane where the pod sent it. */
static __always_inline void report_leaving(struct __sk_buff *skb, struct packet *p,
					   const union address *original, const __u8 family)
{
	if (!was_judged(skb))
		leaves(p, TRACE_TO_NETWORK);
	if (traced(p))
		trace(skb, p, TRACE_TO_NETWORK, 0, original, family);
}

/* The rest of the way to the network, with the node's address where that is wanted. */
static __always_inline int leave(struct __sk_buff *skb, struct packet *p, bool translate,
				 const __u8 family)
{
	if (translate) {
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_MASQUERADE_IPV4 : CALL_MASQUERADE_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	report_leaving(skb, p, &p->tuple.saddr, family);
	return TC_ACT_OK;
}

static __always_inline int leave_masqueraded(struct __sk_buff *skb, struct packet *p,
					     const __u8 family)
{
	union address original = p->tuple.saddr;
	int verdict = masquerade(skb, p, family);

	if (verdict)
		return verdict;
	p->flags |= PACKET_TRANSLATED;
	report_leaving(skb, p, &original, family);
	return TC_ACT_OK;
}

int tail_masquerade_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, leave_masqueraded(skb, p, FAMILY_IPV4), FAMILY_IPV4) :
		   TC_ACT_SHOT;
}

int tail_masquerade_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, leave_masqueraded(skb, p, FAMILY_IPV6), FAMILY_IPV6) :
		   TC_ACT_SHOT;
}

/*
 * Is it an answer, which keeps the address that was asked? What a pod began itself looks like one
 * once tracking has forgotten it and its peer spoke first since; its mapping tells.
 */
static __always_inline bool answers(const struct __sk_buff *skb, const struct packet *p,
				    const __u8 family)
{
	struct mapping to = {};

	return (skb->mark & MARK_MASK) == MARK_SNAT_DONE &&
	       !nat_find(&p->tuple, NAT_OUT, &to, family);
}

/* To the network. */
static __always_inline int to_netdev(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local;
	bool translate;
	int verdict;

	verdict = parse(skb, p, family);
	if (!(p->flags & PACKET_L3))
		return TC_ACT_OK;
	local = endpoint_of_address(&p->tuple.saddr, family);
	p->src_identity = local ? local->identity : ID_UNKNOWN;
	if (!local || local->flags & ENDPOINT_HOST) {
		/* an answer with the address of a frontend, judged with that of the backend */
		if (nodes_served() && (skb->mark & MARK_MASK) == MARK_SNAT_DONE)
			return TC_ACT_OK;
		if (local && nodes_served() && !verdict && answers_as_frontend(p, family)) {
			bpf_tail_call_(map_of(CALLS), skb,
				       family == FAMILY_IPV4 ? CALL_NODES_ANSWER_IPV4 :
							       CALL_NODES_ANSWER_IPV6);
			return DROP(DROP_MISSED_TAIL_CALL);
		}
		if (unlikely_(is_node_address(local, &p->tuple.saddr, family) && node_endpoint())) {
			bpf_tail_call_(map_of(CALLS), skb,
				       family == FAMILY_IPV4 ? CALL_HOST_EGRESS_IPV4 :
							       CALL_HOST_EGRESS_IPV6);
			return DROP(DROP_MISSED_TAIL_CALL);
		}
		/* what we do not understand but did not come from a pod is not ours to stop */
		translate = !verdict && local && node_collides(p, family);
	} else {
		if (verdict < 0)
			return verdict;
		p->endpoint = local->id;
		if (unlikely_(!was_judged(skb)) && proxies_on()) {
			bpf_tail_call_(map_of(CALLS), skb,
				       family == FAMILY_IPV4 ? CALL_PROXY_NETDEV_IPV4 :
							       CALL_PROXY_NETDEV_IPV6);
			return DROP(DROP_MISSED_TAIL_CALL);
		}
		translate = wants_masquerade(p, family) && !answers(skb, p, family);
	}
	if (tracing(config_of(), AGGREGATE_MEDIUM)) {
		p->dst_identity = identity_or_world(ipcache_of(&p->tuple.daddr, family));
		see_alone(skb, p);
	}
	return leave(skb, p, translate, family);
}

/* With the address of a pod, out of the stack: a proxy's. An answer keeps the address asked. */
static __always_inline int proxy_to_netdev(struct __sk_buff *skb, struct packet *p,
					   const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_address(&p->tuple.saddr, family);
	const struct ipcache_info *info;
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	p->origin = origin_of(skb);
	info = ipcache_of(&p->tuple.daddr, family);
	p->dst_identity = identity_or_world(info);
	/* a node may want to hear pods through the tunnel, where the stack knows but its own way */
	if (has_tunnel(info))
		p->node = info->tunnel_ipv4;
	verdict = admit(skb, p, pod, NULL, family);
	if (verdict)
		return verdict < 0 ? verdict : bounce_to_proxy(skb, p, family);
	if (unlikely_(p->answers)) {
		verdict = answer_as_frontend(skb, p, family);
		if (verdict)
			return verdict;
	}
	if (p->node)
		return deliver_to_node(skb, p, p->node, p->src_identity, family);
	count_forward(skb, DIR_EGRESS);
	return leave(skb, p, p->seen.reason != REASON_REPLY && wants_masquerade(p, family), family);
}

int tail_proxy_netdev_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, proxy_to_netdev(skb, p, FAMILY_IPV4), FAMILY_IPV4) :
		   TC_ACT_SHOT;
}

int tail_proxy_netdev_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, proxy_to_netdev(skb, p, FAMILY_IPV6), FAMILY_IPV6) :
		   TC_ACT_SHOT;
}

int tail_to_netdev_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, to_netdev(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_to_netdev_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_EGRESS);

	return p ? conclude(skb, p, to_netdev(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

/* From the node itself, where it has a policy. */
static __always_inline int host_egress(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *node = node_endpoint();
	__s32 verdict = p->verdict;

	if (!node)
		return TC_ACT_OK;
	p->endpoint = node->id;
	p->origin = origin_of(skb);
	p->src_identity = ID_HOST;
	p->dst_identity = identity_of_address(&p->tuple.daddr, family);
	if (serves_the_link(p))
		return TC_ACT_OK;
	if (verdict < 0)
		return node->flags & ENDPOINT_ENFORCE_EGRESS ? verdict : TC_ACT_OK;
	verdict = admit(skb, p, node, NULL, family);
	if (verdict)
		return verdict < 0 ? verdict : bounce_to_proxy(skb, p, family);
	count_forward(skb, DIR_EGRESS);
	return leave(skb, p, node_collides(p, family), family);
}

int tail_host_egress_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, host_egress(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_host_egress_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, host_egress(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

int cil_to_netdev(struct __sk_buff *skb)
{
	/* the tunnel's outer packets have been judged inside */
	if ((skb->mark & MARK_MASK) == MARK_OVERLAY)
		return TC_ACT_OK;
	switch (skb->protocol) {
	case be16(ETH_P_IP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_TO_NETDEV_IPV4);
		break;
	case be16(ETH_P_IPV6):
		bpf_tail_call_(map_of(CALLS), skb, CALL_TO_NETDEV_IPV6);
		break;
	default:
		return TC_ACT_OK;
	}
	return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_EGRESS);
}
