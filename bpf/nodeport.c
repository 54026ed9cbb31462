// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Where the programs of the node's device and of the tunnel go on for services asked from outside.
 *
 * A backend of this node gets the client's packet with the client's address. One of another node gets
 * it with an address of this node, so that answers come back this way, or (direct server return) with
 * the client's address and the frontend in an option, so that its node answers the client.
 */
#define SOURCE_FILE FILE_NODEPORT

#include "lib/admit.h"
#include "lib/answers.h"
#include "lib/delivery.h"
#include "lib/dsr.h"
#include "lib/host_firewall.h"
#include "lib/nodeport.h"
#include "lib/proxy.h"
#include "lib/refusal.h"

#define tail_to(skb, call, family) \
	bpf_tail_call_(map_of(CALLS), skb, (family) == FAMILY_IPV4 ? call##_IPV4 : call##_IPV6)

#define PROGRAM(name, begin, function)                                                    \
	int name##_ipv4(struct __sk_buff *skb)                                            \
	{                                                                                 \
		struct packet *p = begin;                                                 \
                                                                                          \
		return p ? conclude(skb, p, function(skb, p, FAMILY_IPV4), FAMILY_IPV4) : \
			   TC_ACT_SHOT;                                                   \
	}                                                                                 \
	int name##_ipv6(struct __sk_buff *skb)                                            \
	{                                                                                 \
		struct packet *p = begin;                                                 \
                                                                                          \
		return p ? conclude(skb, p, function(skb, p, FAMILY_IPV6), FAMILY_IPV6) : \
			   TC_ACT_SHOT;                                                   \
	}

/* Give the packet the backend as its destination. */
static __always_inline int to_backend(struct __sk_buff *skb, struct packet *p,
				      const struct lb_backend *backend, const __u8 family)
{
	union address address = {};

	__builtin_memcpy(&address, backend->addr, 16);
	if (p->tuple.proto == IPPROTO_SCTP && backend->port != p->tuple.dport)
		return DROP(DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE);
	if (rewrite_port(skb, p, false, backend->port, family) ||
	    rewrite_address(skb, p, false, &address, family))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* Find out who serves, and address the packet to him: p->found is asked. */
static __always_inline int serve(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct lb_backend *backend;
	bool local;
	int verdict;

	trace_from(skb, p, TRACE_FROM_NETWORK, family);
	verdict = forget(p, may_ask(p, family));
	p->asked = p->tuple;
	backend = verdict ? NULL : backend_for(p, family);
	if (!backend) {
		if (drop_reason_of(p->verdict) == DROP_SERVICE_BACKEND_NOT_FOUND &&
		    config_of()->flags & CONFIG_LB_REJECT && !is_dry_run(p))
			tail_to(skb, CALL_NODES_REFUSE, family);
		return p->verdict;
	}
	see(skb, p, p->seen.reason,
	    p->seen.reason == REASON_NEW || p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
	local = backend->flags & LB_BACKEND_LOCAL;
	if (is_dry_run(p) && !local)
		return DRY_RUN_PASSES;
	verdict = to_backend(skb, p, backend, family);
	if (verdict)
		return verdict;
	if (local)
		tail_to(skb, CALL_NODES_LOCAL, family);
	else if (answered_directly(p, family))
		tail_to(skb, CALL_NODES_DIRECT, family);
	else
		tail_to(skb, CALL_NODES_REMOTE, family);
	return DROP(DROP_MISSED_TAIL_CALL);
}

PROGRAM(tail_nodes_serve, packet_at_hand(), serve)

/* Nobody serves: told as a drop, and to the client too. */
static __always_inline int refuse_client(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	int verdict = p->verdict;

	report_drop(skb, p, verdict, family);
	if (forget(p, make_refusal(skb, p, family)))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

PROGRAM(tail_nodes_refuse, packet_at_hand(), refuse_client)

/* A process of the node serves: what it answers gets the frontend's address when it leaves. */
static __always_inline int serve_by_node(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	struct mapping known = {};
	struct tuple back = {};

	reversed(&back, &p->tuple);
	/* nobody answers an error */
	if (!(p->flags & PACKET_ICMP_ERROR) &&
	    (!nat_find(&back, NAT_OUT, &known, family) || known.port != p->asked.dport ||
	     !same_address(&known.address, &p->asked.daddr, family))) {
		if (!nat_write(&back, NAT_OUT, &p->asked.daddr, p->asked.dport, p->lb_rev_nat,
			       BPF_ANY, family))
			return DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	}
	if (node_endpoint()) {
		p->verdict = 0;
		tail_to(skb, CALL_HOST_INGRESS, family);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	return deliver_to_stack(skb, p, TRACE_TO_STACK, skb->mark, family);
}

/* To a backend of this node. */
static __always_inline int serve_locally(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local = endpoint_of_address(&p->tuple.daddr, family);
	int verdict;

	if (!local)
		return DROP(DROP_STALE_OR_UNROUTABLE_IP);
	p->dst_identity = local->identity;
	if (local->flags & ENDPOINT_HOST)
		return is_dry_run(p) ? DRY_RUN_PASSES : serve_by_node(skb, p, family);
	p->endpoint = local->id;
	if (local->flags & ENDPOINT_NOT_READY)
		return DROP(DROP_EP_NOT_READY);
	verdict = admit(skb, p, NULL, local, family);
	if (unlikely_(verdict))
		return verdict < 0 ? verdict : to_proxy(skb, family);
	return deliver_to_pod(skb, p, local, family);
}

PROGRAM(tail_nodes_local, packet_at_hand(), serve_locally)

/* Who the backend's node shall take the client for: identities of CIDRs mean nothing there. */
static __always_inline __u32 identity_elsewhere(const struct packet *p)
{
	return p->src_identity > ID_CLUSTER_MAX ? ID_WORLD : p->src_identity;
}

/* On to a backend of another node, as the packet is now. */
static __always_inline int send_on(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	if (p->node)
		return deliver_to_node(skb, p, p->node, identity_elsewhere(p), family);
	return deliver_to_world(skb, p, MARK_SNAT_DONE, family);
}

static __always_inline void find_node(struct packet *p, const __u8 family)
{
	const struct ipcache_info *info = ipcache_of(&p->tuple.daddr, family);

	p->dst_identity = identity_or_world(info);
	p->node = has_tunnel(info) ? info->tunnel_ipv4 : 0;
}

/* For XDP, which looks nothing up that tc has found out: the backend's node, and the source port. */
static __always_inline void note_way(const struct packet *p, __u16 port, const __u8 family)
{
	struct ct_entry *entry;

	if (!(config_of()->flags & CONFIG_LB_XDP))
		return;
	entry = ct_find(&p->key, is_tcp(p), family);
	if (entry) {
		entry->out_rev = p->node;
		entry->proxy_port = port;
	}
}

/* To a backend of another node, with an address of this one. */
static __always_inline int serve_remotely(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	union address mine = {};
	struct mapping to = {};
	int verdict;

	find_node(p, family);
	address_for_backends(&mine, p->node, family);
	verdict = nat_mapping_of(skb, &p->asked, &p->tuple, &mine, &to, p->lb_rev_nat, family);
	if (forget(p, verdict))
		return p->verdict;
	note_way(p, to.port, family);
	note_original(p);
	if (rewrite_port(skb, p, true, to.port, family) ||
	    rewrite_address(skb, p, true, &to.address, family))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	return send_on(skb, p, family);
}

PROGRAM(tail_nodes_remote, packet_at_hand(), serve_remotely)

/* To a backend of another node, whose node answers the client itself. */
static __always_inline int serve_directly(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	int verdict = 0;

	find_node(p, family);
	if (!(p->flags & PACKET_LATER_FRAGMENT) && (!is_tcp(p) || ct_opens(p)))
		verdict = add_option(skb, p, &p->asked, family);
	return verdict ? verdict : send_on(skb, p, family);
}

PROGRAM(tail_nodes_direct, packet_at_hand(), serve_directly)

/* Inside an error about what was sent to a backend, the client's packet as it was. */
static __always_inline int restore_quote(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	struct mapping original = {};
	struct tuple back = {};
	struct quoted q = {};

	if (!quote(skb, p, &q, family))
		return DROP(DROP_INVALID_PACKET_DROPPED);
	reversed(&back, &q.tuple);
	if (!nat_find(&back, NAT_IN, &original, family))
		return DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	p->answers = original.rev_nat;
	if (rewrite_quoted(skb, p, &q, true, &original.address, original.port, family) ||
	    rewrite_address(skb, p, false, &original.address, family))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* The client's address in the place of ours. */
static __always_inline int restore_client(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	struct mapping original = {};

	if (!nat_find(&p->tuple, NAT_IN, &original, family))
		return DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	p->answers = original.rev_nat;
	if (rewrite_port(skb, p, false, original.port, family) ||
	    rewrite_address(skb, p, false, &original.address, family))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* An answer of a backend of another node, or an error about what was sent to it. */
static __always_inline int return_to_client(struct __sk_buff *skb, struct packet *p,
					    const __u8 family)
{
	struct mapping to = {};
	struct tuple out = {};
	int verdict;

	p->asked.daddr = p->tuple.daddr;
	p->asked.dport = p->tuple.dport;
	if (unlikely_(p->flags & PACKET_ICMP_ERROR)) {
		see(skb, p, REASON_RELATED, true);
		verdict = restore_quote(skb, p, family);
	} else {
		see(skb, p, REASON_REPLY, p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
		verdict = restore_client(skb, p, family);
	}
	if (!forget(p, verdict))
		verdict = answer_as_frontend(skb, p, family);
	if (forget(p, verdict))
		return p->verdict;
	if (likely_(!(p->flags & PACKET_ICMP_ERROR))) {
		reversed(&out, &p->tuple);
		/* one half pushed out is written again; looked up, the other stays in use */
		if (!nat_find(&out, NAT_OUT, &to, family))
			nat_insert(&out, NAT_OUT, &p->asked.daddr, p->asked.dport, p->answers,
				   family);
	}
	p->flags &= ~PACKET_TUNNEL;
	p->dst_identity = identity_or_world(ipcache_of(&p->tuple.daddr, family));
	return deliver_to_world(skb, p, MARK_SNAT_DONE, family);
}

PROGRAM(tail_nodes_return, packet_at_hand(), return_to_client)

/* Not about anything of ours: the node's own business. */
static __always_inline int leave_to_node(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local = endpoint_of_address(&p->tuple.daddr, family);

	if (is_node_address(local, &p->tuple.daddr, family) && node_endpoint()) {
		p->verdict = 0;
		p->restored = 0;
		tail_to(skb, CALL_HOST_INGRESS, family);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	trace_from(skb, p, TRACE_FROM_NETWORK, family);
	return TC_ACT_OK;
}

/* Who serves the client that the error is about? */
static __always_inline const struct lb_backend *
backend_of_quoted(struct packet *p, const struct tuple *quoted, const __u8 family)
{
	struct ct_entry *entry;

	reversed(&p->asked, quoted);
	lb_connection_key(&p->key, &p->asked, family);
	entry = ct_find(&p->key, quoted->proto == IPPROTO_TCP, family);
	if (!entry || (__s32)(entry->lifetime - now_seconds()) < 0)
		return NULL;
	p->lb_rev_nat = entry->rev_nat;
	p->lb_backend = entry->backend;
	return lb_backend_of(entry->backend);
}

/* An error from the network to a frontend, about what a backend has sent: it goes to the backend. */
static __always_inline int pass_error_on(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct lb_backend *backend;
	union address address = {};
	struct mapping to = {};
	struct quoted q = {};

	if (!quote(skb, p, &q, family))
		return leave_to_node(skb, p, family);
	backend = backend_of_quoted(p, &q.tuple, family);
	if (!backend)
		return leave_to_node(skb, p, family);
	see(skb, p, REASON_RELATED, true);
	__builtin_memcpy(&address, backend->addr, 16);
	if (rewrite_quoted(skb, p, &q, true, &address, backend->port, family) ||
	    rewrite_address(skb, p, false, &address, family))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	if (backend->flags & LB_BACKEND_LOCAL) {
		tail_to(skb, CALL_NODES_LOCAL, family);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	find_node(p, family);
	/* without a mapping the backend knows the client itself */
	if (nat_find(&p->asked, NAT_OUT, &to, family) &&
	    (rewrite_quoted(skb, p, &q, false, &to.address, to.port, family) ||
	     rewrite_address(skb, p, true, &to.address, family)))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	return send_on(skb, p, family);
}

PROGRAM(tail_nodes_error, packet_at_hand(), pass_error_on)

/* A process of the node is asked from elsewhere: what keeps the mapping is a connection like ours. */
static __always_inline int connect_to_node(struct packet *p, const __u8 family)
{
	p->found.rev_nat = LB_OTHER_FRONTEND;
	p->lb_backend = 0;
	p->sender_high = lb_connection_key(&p->key, &p->asked, family);
	return lb_connect(p, now_seconds(), family);
}

/* Is that what clients ask of services: a frontend known here, or a port of another node? */
static __always_inline bool is_frontend(const struct mapping *asked, __u8 proto, const __u8 family)
{
	struct lb_found found = {};
	union address any = {};
	__u32 identity;

	if (lb_find_in(&asked->address, asked->port, proto, LB_EXTERNAL, &found, family))
		return true;
	identity = identity_of_address(&asked->address, family);
	return (identity == ID_REMOTE_NODE || identity == ID_HOST) &&
	       lb_find_in(&any, asked->port, proto, LB_EXTERNAL, &found, family);
}

/* Another node has sent a client's packet on, and says which frontend was asked. */
static __always_inline int learn(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local;
	struct mapping asked = {}, known = {};
	struct tuple back = {};
	int verdict = take_option(skb, &asked, family);

	if (forget(p, verdict) < 0)
		return p->verdict;
	skb->cb[CONTROL_OPTION] = verdict ? OPTION_TAKEN : OPTION_NONE;
	if (verdict) {
		/* whoever reaches the device may say so; what comes out of the tunnel is a node's */
		if (!(p->flags & PACKET_TUNNEL) && !is_frontend(&asked, p->tuple.proto, family))
			return DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
		reversed(&back, &p->tuple);
		if ((!nat_find(&back, NAT_OUT, &known, family) || known.port != asked.port ||
		     !same_address(&known.address, &asked.address, family)) &&
		    !nat_write(&back, NAT_OUT, &asked.address, asked.port, LB_OTHER_FRONTEND,
			       BPF_ANY, family))
			return DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
		local = endpoint_of_address(&p->tuple.daddr, family);
		if (local && local->flags & ENDPOINT_HOST) {
			p->asked = p->tuple;
			p->asked.daddr = asked.address;
			p->asked.dport = asked.port;
			verdict = connect_to_node(p, family);
			if (verdict)
				return verdict;
		}
	}
	if (p->flags & PACKET_TUNNEL)
		tail_to(skb, CALL_FROM_OVERLAY, family);
	else
		tail_to(skb, CALL_FROM_NETDEV, family);
	return DROP(DROP_MISSED_TAIL_CALL);
}

PROGRAM(tail_nodes_learn, packet_at_hand(), learn)

/* A process of the node answers a client of a service. */
static __always_inline int answer_by_node(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	const struct endpoint_info *node = node_endpoint();
	struct ct_entry *entry;
	struct mapping to = {};
	int verdict;

	if (!nat_find(&p->tuple, NAT_OUT, &to, family))
		return TC_ACT_OK;
	p->src_identity = ID_HOST;
	p->dst_identity = identity_of_address(&p->tuple.daddr, family);
	if (node) {
		p->endpoint = node->id;
		p->origin = origin_of(skb);
		verdict = admit(skb, p, node, NULL, family);
		if (verdict)
			return verdict < 0 ? verdict : bounce_to_proxy(skb, p, family);
	} else {
		see(skb, p, REASON_REPLY, p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
	}
	note_original(p);
	if (rewrite_port(skb, p, true, to.port, family) ||
	    rewrite_address(skb, p, true, &to.address, family))
		return DROP(DROP_ERROR_WRITING_TO_PACKET);
	lb_connection_key(&p->key, &p->tuple, family);
	entry = ct_find(&p->key, is_tcp(p), family);
	if (entry)
		lb_connection_update(p, entry, true, now_seconds());
	trace_to(skb, p, TRACE_TO_NETWORK, 0, family);
	count_forward(skb, DIR_EGRESS);
	return TC_ACT_OK;
}

PROGRAM(tail_nodes_answer, packet_at_hand(), answer_by_node)
