/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Who asks a service from outside, and who serves: NodePort, LoadBalancer, ExternalIP and HostPort,
 * and ClusterIP where that is allowed.
 */
#ifndef CILIUM_NODEPORT_H
#define CILIUM_NODEPORT_H

#include "dry_run.h"
#include "endpoints.h"
#include "lb_connections.h"
#include "lb_hash.h"
#include "nat.h"

#define NODEPORT_DROP(reason) DROP_AT(FILE_NODEPORT, reason)

static __always_inline bool nodes_served(void)
{
	return config_of()->flags & CONFIG_LB_NODES;
}

/* Is it an outer packet of the tunnel? */
static __always_inline bool is_tunnelled(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_UDP && p->tuple.dport == config_of()->tunnel_port &&
	       config_of()->tunnel_ifindex;
}

/*
 * Does the packet ask a service? Into p->found. An address of the node itself is never one of a
 * service as a whole.
 */
static __always_inline bool asks_service(struct packet *p, bool of_node, const __u8 family)
{
	const struct tuple *t = &p->tuple;

	if (is_tunnelled(p) || p->flags & (PACKET_ICMP_ERROR | PACKET_CONTROL))
		return false;
	if (lb_find_in(&t->daddr, t->dport, t->proto, LB_EXTERNAL, &p->found, family))
		return true;
	return !of_node && lb_find_in(&t->daddr, 0, 0, LB_EXTERNAL, &p->found, family);
}

/* May this client ask this frontend? 0, or a drop. */
static __always_inline int may_ask(const struct packet *p, const __u8 family)
{
	const struct lb_found *found = &p->found;

	if (found->flags & LB_WILDCARD)
		return NODEPORT_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	if (!(found->flags & LB_ROUTABLE) && !(config_of()->flags & CONFIG_LB_EXTERNAL_CLUSTERIP))
		return NODEPORT_DROP(DROP_IS_A_CLUSTERIP);
	if (!lb_source_allowed(found, &p->tuple.saddr, family))
		return NODEPORT_DROP(DROP_DENIED_BY_LB_SRC_RANGE_CHECK);
	return 0;
}

/* Choose for a new client. 0 is nobody. */
static __always_inline __u32 choose_backend(const struct packet *p, __u32 now, const __u8 family)
{
	const struct lb_found *found = &p->found;
	bool faithful = found->flags & LB_AFFINITY;
	struct lb_affinity_key client = {
		.rev_nat = found->rev_nat,
		.family = family,
	};
	__u32 id = 0;

	if (faithful) {
		__builtin_memcpy(client.client, &p->tuple.saddr, 16);
		id = lb_affine(&client, found, now, !is_dry_run(p));
		if (id && lb_backend_of(id))
			return id;
	}
	if (found->flags & LB_MAGLEV)
		id = lb_pick_maglev(found,
				    lb_hash(&p->tuple, faithful ? 0 : p->tuple.sport, family));
	else
		id = lb_pick_random(found);
	if (id && faithful && !is_dry_run(p))
		lb_remember(&client, id, now);
	return id;
}

/* Who serves the packet's client: p->lb_backend. NULL is nobody; the verdict is then in p. */
static __always_inline const struct lb_backend *backend_for(struct packet *p, const __u8 family)
{
	const struct lb_backend *backend = NULL;
	__u32 now = now_seconds();

	p->lb_rev_nat = p->found.rev_nat;
	p->seen.reason = REASON_ESTABLISHED;
	if (!is_dry_run(p))
		backend = lb_connected(p, now, family);
	if (backend)
		return backend;
	p->seen.reason = REASON_NEW;
	p->lb_backend = choose_backend(p, now, family);
	backend = lb_backend_of(p->lb_backend);
	p->verdict = backend ? 0 : NODEPORT_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	if (backend && !is_dry_run(p))
		p->verdict = lb_connect(p, now, family);
	return p->verdict ? NULL : backend;
}

/* The address that a backend of another node sees: one that its answers come back to. */
static __always_inline void address_for_backends(union address *mine, bool tunnel,
						 const __u8 family)
{
	const struct config *config = config_of();

	*mine = (union address){};
	if (family == FAMILY_IPV4)
		mine->v4 = tunnel ? config->router_ipv4 : config->node_ipv4;
	else if (tunnel)
		__builtin_memcpy(mine, config->router_ipv6, 16);
	else
		__builtin_memcpy(mine, config->node_ipv6, 16);
}

/*
 * Do backends of other nodes answer the client themselves? Not one of the cluster: where it is on the
 * backend's node, its stack would see an answer of its own.
 */
static __always_inline bool answered_directly(const struct packet *p, const __u8 family)
{
	__u32 wanted = p->tuple.proto == IPPROTO_TCP ? CONFIG_LB_DSR_TCP : CONFIG_LB_DSR_UDP;

	if (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP)
		return false;
	if (p->src_identity != ID_WORLD && p->src_identity <= ID_CLUSTER_MAX)
		return false;
	/* a fragment of IPv6 has no room for the option where it would have to be */
	if (family == FAMILY_IPV6 && p->flags & PACKET_FRAGMENT)
		return false;
	if (p->found.flags & (LB_DSR | LB_SNAT))
		return p->found.flags & LB_DSR;
	return config_of()->flags & wanted;
}

/*
 * Is the packet an answer (or an error about what was sent) to a client of ours, which came to an
 * address of this node?
 */
static __always_inline bool answers_client_of_node(struct __sk_buff *skb, struct packet *p,
						   const __u8 family)
{
	struct mapping original = {};
	union address mine = {};
	struct tuple back = {};
	struct quoted q = {};

	address_for_backends(&mine, true, family);
	if (!same_address(&p->tuple.daddr, &mine, family))
		return false;
	if (likely_(!(p->flags & PACKET_ICMP_ERROR)))
		return (p->tuple.proto == IPPROTO_SCTP || in_nat_range(p->tuple.dport)) &&
		       nat_find(&p->tuple, NAT_IN, &original, family) && original.rev_nat;
	if (!quote(skb, p, &q, family))
		return false;
	reversed(&back, &q.tuple);
	return nat_find(&back, NAT_IN, &original, family) && original.rev_nat;
}

/* Does a process of the node answer the client of a frontend? */
static __always_inline bool answers_as_frontend(const struct packet *p, const __u8 family)
{
	struct mapping to = {};

	return !(p->flags & PACKET_ICMP_ERROR) && nat_find(&p->tuple, NAT_OUT, &to, family) &&
	       to.rev_nat;
}

#endif
