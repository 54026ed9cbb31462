/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Services that pods ask packet by packet, where no program at the socket has translated before: what
 * pods' sockets cannot (SCTP, raw packets, errors), and everything where sockets are left alone.
 *
 * The destination becomes a backend before the way is looked for and policy is asked, so that
 * everything behind works on the real ends. A pod that serves itself would answer itself past us:
 * it gets another source, of the link between it and its node.
 */
#ifndef CILIUM_LB_PODS_H
#define CILIUM_LB_PODS_H

#include "answers.h"
#include "dry_run.h"
#include "endpoints.h"

static __always_inline bool pods_balanced(void)
{
	return config_of()->flags & CONFIG_LB_PODS;
}

/* How often somebody who serves is looked for: one of two is missed once in 256 times. */
#define LB_TRIES 8

/* The source of pods that serve themselves. */
static __always_inline void hairpin_address(union address *address, const __u8 family)
{
	const struct config *config = config_of();

	*address = (union address){};
	if (family == FAMILY_IPV4)
		address->v4 = config->hairpin_ipv4;
	else
		__builtin_memcpy(address, config->hairpin_ipv6, 16);
}

static __always_inline bool is_hairpin(const union address *address, const __u8 family)
{
	const struct config *config = config_of();

	if (!pods_balanced())
		return false;
	if (family == FAMILY_IPV4)
		return config->hairpin_ipv4 && address->v4 == config->hairpin_ipv4;
	/* no pod sends to the unspecified address, which is what it is while there is none */
	return same_address(address, config->hairpin_ipv6, family);
}

/* Local redirect policies may leave those alone who serve by them. */
static __always_inline bool skips_redirect(const struct packet *p, const struct endpoint_info *pod)
{
	return p->found.flags & LB_SKIP_OWN && pod->flags & ENDPOINT_NO_REDIRECT;
}

/*
 * Does the client have another connection to the backend from the same port? Its stack tells the two
 * apart by whom they ask, and the backend's could not.
 */
static __always_inline bool lb_is_taken(const struct packet *p, const struct lb_backend *backend,
					__u32 now, const __u8 family)
{
	struct tuple direct = p->tuple;
	struct ct_entry *entry;
	bool high;

	if (!is_tcp(p))
		return false;
	__builtin_memcpy(&direct.daddr, backend->addr, 16);
	direct.dport = backend->port;
	entry = ct_alive(&direct, CT_ZONE_PODS, now, &high, family);
	return entry && ct_in_use(entry) && entry->rev_nat != p->found.rev_nat;
}

/*
 * Somebody who serves: who served this client before, where the service wants that, or else anybody.
 * More tries find somebody else where the first has just gone or is taken. NULL is nobody.
 */
static __always_inline const struct lb_backend *lb_choose(struct packet *p, __u32 now,
							  const __u8 family)
{
	struct lb_affinity_key client = {.rev_nat = p->found.rev_nat, .family = family};
	bool affine = p->found.flags & LB_AFFINITY;
	const struct lb_backend *backend;
	int i;

	if (affine) {
		__builtin_memcpy(client.client, &p->tuple.saddr, 16);
		p->lb_backend = lb_affine(&client, &p->found, now, !is_dry_run(p));
		backend = lb_backend_of(p->lb_backend);
		if (p->lb_backend && backend)
			return backend;
	}
	/* not unrolled: see parse.h */
#pragma clang loop unroll(disable)
	for (i = 0; i < LB_TRIES; i++) {
		p->lb_backend = lb_pick_random(&p->found);
		backend = lb_backend_of(p->lb_backend);
		if (p->lb_backend && backend) {
			if (i < LB_TRIES - 1 && unlikely_(lb_is_taken(p, backend, now, family)))
				continue;
			if (affine && !is_dry_run(p))
				lb_remember(&client, p->lb_backend, now);
			return backend;
		}
	}
	p->lb_backend = 0;
	return NULL;
}

/*
 * Who serves the packet, whose frontend is p->found: p->lb_backend, and where into `to`. Returns 1,
 * 0 for nobody, or a drop.
 */
static __always_inline int lb_serve(struct packet *p, union address *to, __u16 *port,
				    const __u8 family)
{
	const struct lb_backend *backend = NULL;
	__u32 now = now_seconds();
	bool connected;
	int verdict;

	if (p->found.flags & LB_WILDCARD)
		return 0;
	if (!is_dry_run(p))
		backend = lb_connected(p, now, family);
	connected = backend;
	if (!backend)
		backend = lb_choose(p, now, family);
	if (!backend)
		return 0;
	*to = (union address){};
	__builtin_memcpy(to, backend->addr, 16);
	*port = backend->port;
	if (!connected && !is_dry_run(p)) {
		verdict = lb_connect(p, now, family);
		if (verdict)
			return verdict;
	}
	return 1;
}

/* Change the destination. SCTP's checksum covers ports and is not ours to redo. */
static __always_inline int ask_backend(struct __sk_buff *skb, struct packet *p,
				       const union address *to, __u16 port, const __u8 family)
{
	if (p->tuple.proto == IPPROTO_SCTP && p->tuple.dport != port)
		return LB_DROP(DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE);
	if (rewrite_port(skb, p, false, port, family) || rewrite_address(skb, p, false, to, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	p->lb_rev_nat = p->found.rev_nat;
	return 0;
}

/* Of error_to_backend(): the backend is the pod itself. */
#define ERROR_TO_ITSELF 1

/*
 * A pod's error about an answer, which it got from a frontend: the backend knows but itself. Returns
 * 0 when the error goes on, to the backend or to whom it was for, ERROR_TO_ITSELF, or a drop.
 */
static __always_inline int error_to_backend(struct __sk_buff *skb, struct packet *p,
					    const __u8 family)
{
	const struct lb_backend *backend;
	union address to = {}, source = {};
	struct ct_entry *entry;
	struct quoted q = {};
	__u16 port;

	if (!quote(skb, p, &q, family))
		/* nobody can be told, and a service's address is on no wire */
		return lb_find_in(&p->tuple.daddr, 0, 0, LB_EXTERNAL, &p->found, family) ?
			       LB_DROP(DROP_SERVICE_BACKEND_NOT_FOUND) :
			       0;
	if (!lb_find(&q.tuple.saddr, q.tuple.sport, q.tuple.proto, true, &p->found, family))
		return 0;
	lb_connection_key(&p->key, &q.tuple, family);
	entry = ct_find(&p->key, q.tuple.proto == IPPROTO_TCP, family);
	if (!entry || entry->rev_nat != p->found.rev_nat)
		return LB_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	backend = lb_backend_of(entry->backend);
	if (!backend)
		return LB_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	__builtin_memcpy(&to, backend->addr, 16);
	port = backend->port;
	if (rewrite_quoted(skb, p, &q, true, &to, port, family) ||
	    rewrite_address(skb, p, false, &to, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	if (!same_address(&p->tuple.saddr, &to, family))
		return 0;
	hairpin_address(&source, family);
	note_original(p);
	if (rewrite_quoted(skb, p, &q, false, &source, q.tuple.dport, family) ||
	    rewrite_address(skb, p, true, &source, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return ERROR_TO_ITSELF;
}

/* ---- a pod that serves itself ---- */

/* Its own connection, judged by nobody. Returns 0 or a drop. */
static __always_inline int hairpin_track(struct __sk_buff *skb, struct packet *p,
					 const struct endpoint_info *pod, const __u8 family)
{
	__u32 now = now_seconds();
	struct ct_entry *entry;

	see(skb, p, REASON_NEW, true);
	p->dst_identity = p->src_identity;
	entry = ct_lookup(p, CT_ZONE_PODS, now, family);
	if (entry) {
		if (p->seen.reason == REASON_REPLY)
			p->answers = entry->rev_nat;
		else
			entry->rev_nat = p->lb_rev_nat;
		ct_update(skb, p, entry, now);
		return 0;
	}
	/* only the service begins it */
	if (!p->lb_rev_nat)
		return LB_DROP(DROP_UNKNOWN_L3_TARGET_ADDRESS);
	__builtin_memset(&p->initiator, 0, sizeof(p->initiator));
	p->initiator.local = true;
	p->initiator.policy_rev = pod->policy_rev;
	p->responder = p->initiator;
	return ct_create(skb, p, now, family);
}

/* The pod asks itself: the destination is its own address already. */
static __always_inline int hairpin_ask(struct __sk_buff *skb, struct packet *p,
				       const struct endpoint_info *pod, const __u8 family)
{
	union address source = {};

	hairpin_address(&source, family);
	note_original(p);
	if (rewrite_address(skb, p, true, &source, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return hairpin_track(skb, p, pod, family);
}

/* An error of the pod as the server about what it has asked as the client. */
static __always_inline int hairpin_answer_error(struct __sk_buff *skb, struct packet *p,
						const struct endpoint_info *pod,
						const union address *client, const __u8 family)
{
	struct ct_entry *entry;
	struct quoted q = {};
	bool high;

	if (!quote(skb, p, &q, family))
		return LB_DROP(DROP_UNKNOWN_L3_TARGET_ADDRESS);
	entry = ct_alive(&q.tuple, CT_ZONE_PODS, now_seconds(), &high, family);
	if (!entry)
		return LB_DROP(DROP_UNKNOWN_L3_TARGET_ADDRESS);
	p->answers = entry->rev_nat;
	see(skb, p, REASON_RELATED, true);
	if (rewrite_quoted(skb, p, &q, true, client, q.tuple.sport, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* It answers itself: to the address that it was asked from, and then as the frontend. */
static __always_inline int hairpin_answer(struct __sk_buff *skb, struct packet *p,
					  const struct endpoint_info *pod, const __u8 family)
{
	union address client = p->tuple.saddr;
	int verdict;

	verdict = p->flags & PACKET_ICMP_ERROR ?
			  hairpin_answer_error(skb, p, pod, &client, family) :
			  hairpin_track(skb, p, pod, family);
	if (verdict)
		return verdict;
	/* not an answer, but a packet to the address itself */
	if (!p->answers)
		return LB_DROP(DROP_UNKNOWN_L3_TARGET_ADDRESS);
	if (rewrite_address(skb, p, false, &client, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return answer_as_frontend(skb, p, family);
}

#endif
