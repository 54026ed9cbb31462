/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Policy: may this identity speak with that endpoint on this protocol and port?
 *
 * Two look-ups in the endpoint's own LPM map, for the exact identity and for any; the entry of
 * higher precedence wins, then the one with the longer protocol and port prefix, then the one that
 * names the identity.
 */
#ifndef CILIUM_POLICY_H
#define CILIUM_POLICY_H

#include "conntrack.h"
#include "endpoints.h"
#include "quoted.h"

#define POLICY_DROP(reason) DROP_AT(FILE_POLICY, reason)

static __always_inline __u8 policy_match_of(const struct policy_entry *entry, bool exact)
{
	if (entry->prefixlen == 0)
		return exact ? MATCH_L3_ONLY : MATCH_ALL;
	if (entry->prefixlen <= 8)
		return exact ? MATCH_L3_PROTO : MATCH_PROTO_ONLY;
	return exact ? MATCH_L3_L4 : MATCH_L4_ONLY;
}

static __always_inline bool policy_outranks(const struct policy_entry *any,
					    const struct policy_entry *exact)
{
	if (any->precedence != exact->precedence)
		return any->precedence > exact->precedence;
	return any->prefixlen > exact->prefixlen;
}

/*
 * The port field of a policy key: destination port of the request, or the type of an ICMP message.
 * Of a reply it is that of the request it answers, which for ICMP differs by a constant.
 */
static __always_inline __u16 policy_port(const struct packet *p, bool reply)
{
	switch (p->tuple.proto) {
	case IPPROTO_ICMP:
		if (reply && p->icmp_type == ICMP_ECHOREPLY)
			return bpf_htons(ICMP_ECHO);
		return bpf_htons(reply ? p->icmp_type - 1 : p->icmp_type);
	case IPPROTO_ICMPV6:
		return bpf_htons(reply ? p->icmp_type - 1 : p->icmp_type);
	}
	return reply ? p->tuple.sport : p->tuple.dport;
}

/*
 * The verdict of one endpoint in one direction: 0 or a drop. `tell` writes the verdict event, which
 * is the caller's choice for packets that are allowed; a denied or audited one is always told.
 */
static __always_inline int policy_check(struct __sk_buff *skb, const struct packet *p,
					const struct endpoint_info *endpoint, __u32 peer,
					__u16 port, const __u8 direction, bool tell, bool quiet,
					__u32 *cookie, const __u8 family)
{
	const __u16 enforced = direction == DIR_INGRESS ? ENDPOINT_ENFORCE_INGRESS :
							  ENDPOINT_ENFORCE_EGRESS;
	struct policy_key key = {
		.prefixlen = POLICY_FULL_BITS,
		.identity = peer,
		.direction = direction,
		.proto = p->tuple.proto,
		.port = port,
	};
	const struct policy_entry *exact, *any;
	__u32 id = endpoint->id, found_cookie = 0;
	__u8 match = MATCH_NONE;
	bool audit, audited;
	int verdict;
	void *rules;

	if (!(endpoint->flags & enforced) || p->flags & PACKET_PATH_MTU)
		return 0;
	rules = map_lookup(map_of(POLICY), &id);
	if (!rules)
		return POLICY_DROP(DROP_EP_NOT_READY);
	exact = bpf_map_lookup_elem(rules, &key);
	key.identity = 0;
	any = bpf_map_lookup_elem(rules, &key);

	verdict = POLICY_DROP(DROP_POLICY_DENIED);
	audit = endpoint->flags & ENDPOINT_AUDIT || config_of()->flags & CONFIG_AUDIT;
	if (any && (!exact || policy_outranks(any, exact))) {
		match = policy_match_of(any, false);
		exact = any;
	} else if (exact) {
		match = policy_match_of(exact, true);
	}
	if (exact) {
		found_cookie = exact->cookie;
		audit = audit || exact->flags & POLICY_AUDIT;
		verdict = 0;
		if (exact->flags & POLICY_DENY)
			verdict = POLICY_DROP(DROP_POLICY_DENY);
		else if (exact->proxy_port)
			/* nothing listens there in this data plane: refuse rather than let by */
			verdict = POLICY_DROP(DROP_PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL);
	}
	audited = verdict && audit;
	if (audited)
		verdict = 0;
	*cookie = found_cookie;
	if ((verdict || audited || tell) && !quiet)
		report_verdict(skb, p, direction, verdict ? -(__s32)drop_reason_of(verdict) : 0,
			       found_cookie, match, audited, family);
	return verdict;
}

/*
 * An ICMP error belongs to the connection of the packet it quotes. Errors of pods must come from
 * the very end that was spoken to; routers on the way may write to anybody.
 */
static __always_inline bool related(struct __sk_buff *skb, const struct packet *p, bool from_pod,
				    __u32 now, const __u8 family)
{
	struct quoted q = {};
	struct ct_entry *entry;
	union ct_key key = {};

	if (!quote(skb, p, &q, family))
		return false;
	if (from_pod && !same_address(&q.tuple.daddr, &p->tuple.saddr, family))
		return false;
	ct_key_of(&key, &q.tuple, family);
	entry = ct_find(&key, q.tuple.proto == IPPROTO_TCP, family);
	return entry && (__s32)(entry->lifetime - now) >= 0;
}

/* Does the entry still hold what policy was asked? */
static __always_inline bool ct_current(const struct packet *p, const struct ct_entry *entry,
				       const struct endpoint_info *src,
				       const struct endpoint_info *dst)
{
	if (p->seen.reason == REASON_REPLY)
		return (!src || entry->in_rev == src->policy_rev) &&
		       (!dst || entry->out_rev == dst->policy_rev);
	/* an address may have changed hands since; a SYN is the moment to ask again */
	return (!src || entry->out_rev == src->policy_rev) &&
	       (!dst || entry->in_rev == dst->policy_rev) &&
	       entry->src_identity == p->src_identity && entry->dst_identity == p->dst_identity &&
	       !ct_opens(p);
}

/*
 * The heart of the data plane: find the packet's connection, ask the policy of both local ends when
 * the connection is new or the answer may have changed, and write down the outcome. `src` and `dst`
 * are the local endpoints at either end, NULL for an end that lives elsewhere.
 */
static __always_inline int admit(struct __sk_buff *skb, struct packet *p,
				 const struct endpoint_info *src, const struct endpoint_info *dst,
				 const __u8 family)
{
	__u32 now = now_seconds(), cookie = 0, initiator_id, responder_id;
	const struct endpoint_info *initiator, *responder;
	struct ct_entry *entry = NULL;
	bool reply, fresh;
	int verdict = 0;
	__u16 port;

	see(skb, p, REASON_NEW, true);
	if (unlikely_(p->flags & PACKET_ICMP_ERROR)) {
		if (related(skb, p, src != NULL, now, family)) {
			p->seen.reason = REASON_RELATED;
			return 0;
		}
	} else {
		entry = ct_lookup(p, now, family);
		if (likely_(entry && ct_current(p, entry, src, dst))) {
			ct_update(skb, p, entry, now);
			return 0;
		}
	}

	barrier();
	reply = p->seen.reason == REASON_REPLY;
	fresh = p->seen.reason == REASON_NEW;
	initiator = reply ? dst : src;
	responder = reply ? src : dst;
	initiator_id = p->src_identity;
	responder_id = p->dst_identity;
	if (reply && entry) {
		initiator_id = entry->src_identity;
		responder_id = entry->dst_identity;
	}
	port = policy_port(p, reply);
	if (initiator)
		verdict = policy_check(skb, p, initiator, responder_id, port, DIR_EGRESS, fresh,
				       reply, &cookie, family);
	if (!verdict && responder) {
		if (!reply) {
			p->endpoint = responder->id;
			p->direction = DIR_INGRESS;
		}
		verdict = policy_check(skb, p, responder, initiator_id, port, DIR_INGRESS, fresh,
				       reply, &cookie, family);
	}
	verdict = forget(p, verdict);
	if (verdict) {
		/* what is refused now is no connection any more, in neither direction */
		if (entry)
			ct_remove(p, family);
		return verdict;
	}
	if (p->flags & PACKET_ICMP_ERROR)
		return 0;
	if (!entry)
		return ct_create(skb, p, src, dst, cookie, now, family);
	if (initiator)
		entry->out_rev = initiator->policy_rev;
	if (responder)
		entry->in_rev = responder->policy_rev;
	if (!reply) {
		entry->src_identity = p->src_identity;
		entry->dst_identity = p->dst_identity;
	}
	if (cookie)
		entry->cookie = cookie;
	ct_update(skb, p, entry, now);
	return 0;
}

#endif
