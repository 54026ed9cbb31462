// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The tunnel device: packets of other nodes' pods, with the sender's identity as the network
 * identifier of the tunnel.
 */
#define SOURCE_FILE FILE_OVERLAY

#include "lib/admit.h"
#include "lib/answers.h"
#include "lib/delivery.h"
#include "lib/dsr.h"
#include "lib/host_firewall.h"
#include "lib/nodeport.h"
#include "lib/proxy.h"

/* What services have to do with the packet; goes on here when that is nothing. Less than 0 is a drop. */
static __always_inline int serve_nodes(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	if (skb->cb[CONTROL_OPTION] == OPTION_TAKEN) {
		p->lb_rev_nat = LB_OTHER_FRONTEND;
		p->asked_other = true;
	} else if (unlikely_(may_have_option(p, family)) && !skb->cb[CONTROL_OPTION] &&
		   !is_cluster_identity(p->src_identity)) {
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_NODES_LEARN_IPV4 :
						       CALL_NODES_LEARN_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	if (answers_client_of_node(skb, p, family)) {
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_NODES_RETURN_IPV4 :
						       CALL_NODES_RETURN_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	return 0;
}

static __always_inline int from_overlay(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local, *judge;
	const struct ipcache_info *info;
	bool host;
	int verdict;

	p->flags = PACKET_TUNNEL;
	p->origin = origin_on_wire(skb);
	p->src_identity = skb->cb[CONTROL_IDENTITY];
	p->peer = skb->cb[CONTROL_PEER];
	verdict = parse(skb, p, family);
	if (!verdict && p->src_identity == ID_REMOTE_NODE) {
		/* the sending node says only "a node"; the address may tell which kind */
		info = ipcache_of(&p->tuple.saddr, family);
		if (info && info->identity != ID_HOST)
			p->src_identity = info->identity;
	}
	trace_from(skb, p, TRACE_FROM_OVERLAY, family);
	if (verdict < 0)
		return verdict;
	if (p->flags & PACKET_CONTROL)
		return DROP(DROP_FORBIDDEN_ICMPV6_MESSAGE);
	if (nodes_served()) {
		verdict = forget(p, serve_nodes(skb, p, family));
		if (verdict)
			return verdict;
	}
	/* what is here cannot come from there */
	if (endpoint_of_address(&p->tuple.saddr, family))
		return DROP(DROP_INVALID_SOURCE_IP);
	local = endpoint_of_address(&p->tuple.daddr, family);
	if (!local)
		return DROP(DROP_STALE_OR_UNROUTABLE_IP);
	p->dst_identity = local->identity;
	host = local->flags & ENDPOINT_HOST;
	judge = host ? node_endpoint() : local;
	opaque(judge);
	if (judge) {
		p->endpoint = judge->id;
		if (judge->flags & ENDPOINT_NOT_READY)
			return DROP(DROP_EP_NOT_READY);
		verdict = admit(skb, p, NULL, judge, family);
		if (unlikely_(verdict))
			return verdict < 0 ? verdict : to_proxy(skb, family);
		if (unlikely_(p->answers)) {
			verdict = answer_as_frontend(skb, p, family);
			if (verdict)
				return verdict;
		}
	} else {
		see_alone(skb, p);
	}
	if (host) {
		/* the frame was addressed to the pod's gateway on its own node */
		bpf_skb_change_type(skb, PACKET_HOST);
		return deliver_to_stack(skb, p, TRACE_TO_STACK, mark_of_identity(p->src_identity),
					family);
	}
	return deliver_to_pod(skb, p, local, family);
}

int tail_from_overlay_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, from_overlay(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_from_overlay_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, from_overlay(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

int cil_from_overlay(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return refuse(skb, DROP(DROP_ERROR_RETRIEVING_TUNNEL_KEY), DIR_INGRESS);
	/* a host never says so on the wire, and nobody is nobody */
	if (key.tunnel_id == ID_HOST || key.tunnel_id == ID_UNKNOWN ||
	    key.tunnel_id > ID_CLUSTER_MAX)
		return refuse(skb, DROP(DROP_INVALID_IDENTITY), DIR_INGRESS);
	skb->cb[CONTROL_IDENTITY] = key.tunnel_id;
	skb->cb[CONTROL_PEER] = bpf_htonl(key.remote_ipv4);
	skb->cb[CONTROL_OPTION] = OPTION_NOT_SOUGHT;
	switch (skb->protocol) {
	case be16(ETH_P_IP):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_OVERLAY_IPV4);
		break;
	case be16(ETH_P_IPV6):
		bpf_tail_call_(map_of(CALLS), skb, CALL_FROM_OVERLAY_IPV6);
		break;
	default:
		return refuse(skb, DROP(DROP_UNSUPPORTED_L3_PROTOCOL), DIR_INGRESS);
	}
	return refuse(skb, DROP(DROP_MISSED_TAIL_CALL), DIR_INGRESS);
}

/*
 * Into the tunnel. Our own programs have set the tunnel key, judged and reported; the mark tells the
 * node's device that the outer packet is not to be looked at.
 */
int cil_to_overlay(struct __sk_buff *skb)
{
	skb->mark = MARK_OVERLAY;
	return TC_ACT_OK;
}
