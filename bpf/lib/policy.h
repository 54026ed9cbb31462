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
#include "host_firewall.h"
#include "proxy.h"
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

/* Through the proxy or not at all. */
static __always_inline int policy_redirect(struct packet *p, const struct policy_entry *entry)
{
	p->judged.audited = false;
	if (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP)
		return POLICY_DROP(DROP_PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL);
	if (!entry->proxy_port || !proxies_on())
		return POLICY_DROP(DROP_SOCKET_LOOKUP_FAILED);
	p->judged.proxy_port = entry->proxy_port;
	return 0;
}

/*
 * What the winning entry says. A denial that is audited leaves the redirect of those that it
 * outranks in force, and is told; whether the proxy is there is no matter of audit.
 */
static __always_inline int policy_decide(struct packet *p, const struct policy_entry *entry,
					 bool exact, bool audit)
{
	int verdict = 0;

	p->judged.cookie = entry->cookie;
	p->judged.match = policy_match_of(entry, exact);
	p->judged.audited = audit || entry->flags & POLICY_AUDIT;
	if (entry->flags & POLICY_DENY) {
		verdict = POLICY_DROP(DROP_POLICY_DENY);
		/* nobody's rule, but who closes the direction: its cookie says */
		if (!(entry->precedence & 0xff)) {
			p->judged.match = MATCH_NONE;
			verdict = POLICY_DROP(DROP_POLICY_DENIED);
		}
	}
	if (entry->flags & POLICY_REDIRECT && (!verdict || p->judged.audited)) {
		int redirect;
		bool audited = verdict;

		redirect = policy_redirect(p, entry);
		if (redirect)
			return redirect;
		p->judged.audited = audited;
	}
	return verdict;
}

/*
 * The verdict of one endpoint in one direction: 0 or a drop. It is told when it denies, when it
 * would have but for audit mode, and when the connection is new; the packets of an answer are not
 * what the rules speak of, and tell nothing.
 */
static __always_inline int policy_check(struct __sk_buff *skb, struct packet *p,
					const struct endpoint_info *endpoint, __u32 peer,
					__u16 port, const __u8 direction, const __u8 family)
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
	__u32 id = endpoint->id;
	int verdict;
	bool audit;
	void *rules;

	p->judged.proxy_port = 0;
	if (!(endpoint->flags & enforced) || p->flags & PACKET_PATH_MTU)
		return 0;
	if (unlikely_(endpoint->flags & ENDPOINT_HOST) &&
	    exempt(p, p->seen.reason == REASON_REPLY, port, direction, family))
		return 0;
	rules = map_lookup(map_of(POLICY), &id);
	if (!rules)
		return POLICY_DROP(endpoint->flags & ENDPOINT_HOST ? DROP_HOST_NOT_READY :
								     DROP_EP_NOT_READY);
	exact = bpf_map_lookup_elem(rules, &key);
	key.identity = 0;
	any = bpf_map_lookup_elem(rules, &key);

	audit = endpoint->flags & ENDPOINT_AUDIT || config_of()->flags & CONFIG_AUDIT;
	if (any && (!exact || policy_outranks(any, exact))) {
		verdict = policy_decide(p, any, false, audit);
	} else if (exact) {
		verdict = policy_decide(p, exact, true, audit);
	} else {
		verdict = POLICY_DROP(DROP_POLICY_DENIED);
		p->judged.cookie = 0;
		p->judged.match = MATCH_NONE;
		p->judged.audited = audit;
	}
	verdict = forget(p, verdict);
	if (!verdict)
		p->judged.audited = false;
	else if (p->judged.audited)
		verdict = 0;
	if (unlikely_(is_dry_run(p))) {
		note_answer(p, direction, verdict);
		return verdict;
	}
	if (p->seen.reason != REASON_REPLY &&
	    (verdict || p->judged.audited || p->seen.reason == REASON_NEW))
		report_verdict(skb, p, direction, verdict, family);
	return verdict;
}

static __always_inline struct ct_entry *ct_alive(const struct tuple *t, const __u16 zone, __u32 now,
						 const __u8 family)
{
	union ct_key key = {};
	struct ct_entry *entry;

	ct_key_of(&key, t, zone, family);
	entry = ct_find(&key, t->proto == IPPROTO_TCP, family);
	return entry && (__s32)(entry->lifetime - now) >= 0 ? entry : NULL;
}

/*
 * An ICMP error belongs to the connection of the packet it quotes. Errors of pods must come from
 * the very end that was spoken to; routers on the way may write to anybody.
 */
static __always_inline bool related(struct __sk_buff *skb, struct packet *p, bool from_pod,
				    __u32 now, const __u8 family)
{
	struct ct_entry *entry;
	struct quoted q = {};

	if (!quote(skb, p, &q, family))
		return false;
	if (from_pod && !same_address(&q.tuple.daddr, &p->tuple.saddr, family))
		return false;
	entry = ct_alive(&q.tuple, CT_ZONE_PODS, now, family);
	if ((!entry || entry->flags & CT_PROXY_REDIRECT) && proxies_on() &&
	    ct_alive(&q.tuple, CT_ZONE_PROXIES, now, family)) {
		p->flags |= PACKET_PROXIED;
		return true;
	}
	return entry;
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
 * Ask the policy of both local ends. For an answer, that is the question of the one who started: what
 * is asked is always whether the initiator may speak to the responder. Where egress goes through a
 * proxy, ingress is asked when the proxy speaks to the responder; of the node itself it is asked now,
 * as what a proxy sends to it never leaves the stack.
 */
static __always_inline int judge(struct __sk_buff *skb, struct packet *p,
				 const struct ct_entry *entry, const struct endpoint_info *src,
				 const struct endpoint_info *dst, const __u8 family)
{
	bool reply = p->seen.reason == REASON_REPLY;
	const struct endpoint_info *initiator = reply ? dst : src, *responder = reply ? src : dst;
	/* as they are now: an end may have got another identity since it began */
	__u32 initiator_id = reply ? p->dst_identity : p->src_identity;
	__u32 responder_id = reply ? p->src_identity : p->dst_identity;
	__u16 port = policy_port(p, reply), proxy_port = 0;
	int verdict = 0;

	opaque(initiator);
	opaque(responder);
	if (initiator && !egress_decided(p, entry)) {
		if (!reply) {
			p->endpoint = initiator->id;
			p->direction = DIR_EGRESS;
		}
		verdict = policy_check(skb, p, initiator, responder_id, port, DIR_EGRESS, family);
		proxy_port = p->judged.proxy_port;
		if (proxy_port != redirect_of(entry, false))
			p->flags |= PACKET_CHANGED;
	}
	if (verdict || !responder || ingress_decided(p, entry) ||
	    (proxy_port && !(responder->flags & ENDPOINT_HOST)))
		return forget(p, verdict);
	if (!reply) {
		p->endpoint = responder->id;
		p->direction = DIR_INGRESS;
	}
	verdict = policy_check(skb, p, responder, initiator_id, port, DIR_INGRESS, family);
	if (!verdict && proxy_port) {
		p->judged.proxy_port = proxy_port;
		if (!reply && initiator) {
			p->endpoint = initiator->id;
			p->direction = DIR_EGRESS;
		}
	} else if (p->judged.proxy_port != redirect_of(entry, true)) {
		p->flags |= PACKET_CHANGED;
	}
	return forget(p, verdict);
}

/* Write down under which revision of their policies, and for whom, the connection is allowed. */
static __always_inline void ct_renew(const struct packet *p, struct ct_entry *entry,
				     const struct endpoint_info *src,
				     const struct endpoint_info *dst)
{
	bool reply = p->seen.reason == REASON_REPLY;

	if (src && reply)
		entry->in_rev = src->policy_rev;
	else if (src)
		entry->out_rev = src->policy_rev;
	if (dst && reply)
		entry->out_rev = dst->policy_rev;
	else if (dst)
		entry->in_rev = dst->policy_rev;
	if (!reply) {
		entry->src_identity = p->src_identity;
		entry->dst_identity = p->dst_identity;
	}
	if (p->judged.cookie)
		entry->cookie = p->judged.cookie;
}

/*
 * A connection whose proxy policy has changed: it began as something else than it has to be now, so
 * it ends. The listener that gets a segment of it answers with RST, and nothing of the stream goes
 * on to the server. Datagrams and a new SYN begin anew. 0 is anew.
 */
static __always_inline int end_connection(struct packet *p, const struct ct_entry *entry)
{
	p->flags &= ~PACKET_PROXIED;
	if (p->seen.reason == REASON_REPLY)
		return POLICY_DROP(DROP_POLICY_DENIED);
	if (!is_tcp(p) || ct_opens(p))
		return 0;
	p->proxy_port = p->judged.proxy_port ? p->judged.proxy_port : entry->proxy_port;
	p->flags |= PACKET_PROXIED | PACKET_TO_LISTENER;
	return ADMIT_PROXY;
}

/* What else than the entry found by its addresses is the packet's connection? */
static __always_inline struct ct_entry *special_connection(struct packet *p, struct ct_entry *entry,
							   __u32 now, const __u8 family)
{
	if (is_dry_run(p)) {
		p->seen.reason = REASON_NEW;
		return NULL;
	}
	if (!proxies_on())
		return entry;
	entry = proxied_connection(p, entry, now, family);
	if (entry)
		follow_redirect(p, entry);
	return entry;
}

static __always_inline int admitted(const struct packet *p)
{
	return unlikely_(p->flags & PACKET_PROXIED) ? ADMIT_PROXY : 0;
}

/*
 * The heart of the data plane: find the packet's connection, ask the policy of both local ends when
 * the connection is new or the answer may have changed, and write down the outcome. `src` and `dst`
 * are the local endpoints at either end, NULL for an end that lives elsewhere. Returns 0 for a packet
 * that goes on, ADMIT_PROXY for one that goes to a proxy, or a drop.
 */
static __always_inline int admit(struct __sk_buff *skb, struct packet *p,
				 const struct endpoint_info *src, const struct endpoint_info *dst,
				 const __u8 family)
{
	struct ct_entry *entry = NULL;
	__u32 now = now_seconds();
	int verdict;

	see(skb, p, REASON_NEW, true);
	if (likely_(!(p->flags & PACKET_ICMP_ERROR))) {
		entry = ct_lookup(p, CT_ZONE_PODS, now, family);
		if (unlikely_(!entry || entry->flags & CT_PROXY_REDIRECT ||
			      p->origin >= ORIGIN_PROXY_EGRESS)) {
			entry = special_connection(p, entry, now, family);
			if (p->flags & PACKET_STRAY)
				return POLICY_DROP(DROP_POLICY_DENIED);
		}
	} else if (related(skb, p, src != NULL, now, family)) {
		p->seen.reason = REASON_RELATED;
		return admitted(p);
	}
	barrier();
	if (unlikely_(!entry || !ct_current(p, entry, src, dst))) {
		verdict = judge(skb, p, entry, src, dst, family);
		/*
		 * The entry of a connection that is refused now stays, out of date: without it the
		 * answers still under way would open the connection anew from the other side.
		 * Nothing renews it, so it dies with its lifetime.
		 */
		if (verdict)
			return verdict;
		if (unlikely_(is_dry_run(p)))
			return DRY_RUN_PASSES;
		if (p->flags & PACKET_ICMP_ERROR)
			return 0;
		if (entry && p->flags & PACKET_CHANGED) {
			/* the end itself, from the listener or a server that has heard of it */
			if (p->seen.reason == REASON_REPLY && p->tcp_flags & TCP_RST)
				return admitted(p);
			verdict = end_connection(p, entry);
			if (verdict)
				return verdict;
			entry = NULL;
		}
		if (!entry) {
			if (p->judged.proxy_port) {
				p->proxy_port = p->judged.proxy_port;
				p->flags |= PACKET_PROXIED;
			}
			verdict = ct_create(skb, p, src, dst, now, family);
			return verdict ? verdict : admitted(p);
		}
		ct_renew(p, entry, src, dst);
	}
	ct_update(skb, p, entry, now);
	return admitted(p);
}

#endif
