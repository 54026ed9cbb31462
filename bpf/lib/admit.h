/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * May the packet go on? Its connection knows, or the policies of the ends that live here do.
 */
#ifndef CILIUM_ADMIT_H
#define CILIUM_ADMIT_H

#include "policy.h"
#include "proxy.h"
#include "quoted.h"

/* Of judge_anew(): the packet goes on, its connection is written down. */
#define ADMIT_DONE 2

/*
 * An ICMP error belongs to the connection of the packet it quotes. Errors of pods must come from
 * the very end that was spoken to; routers on the way may write to anybody.
 */
static __always_inline bool related(struct __sk_buff *skb, struct packet *p, bool from_pod,
				    __u32 now, const __u8 family)
{
	struct ct_entry *entry;
	struct quoted q = {};
	bool high;

	if (!quote(skb, p, &q, family))
		return false;
	if (from_pod && !same_address(&q.tuple.daddr, &p->tuple.saddr, family))
		return false;
	entry = ct_alive(&q.tuple, CT_ZONE_PODS, now, &high, family);
	/* what the initiator has sent to a frontend is quoted as it came to the backend */
	if (entry && entry->rev_nat && !(entry->flags & CT_INITIATOR_HIGH) == !high)
		p->answers = entry->rev_nat;
	if ((!entry || entry->flags & CT_PROXY_REDIRECT) && proxies_on() &&
	    ct_alive(&q.tuple, CT_ZONE_PROXIES, now, &high, family)) {
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

/* ---- asking anew: from here on the two ends are what is noted of them in the packet ---- */

static __always_inline void note_side(struct side *side, const struct endpoint_info *endpoint,
				      __u32 identity)
{
	side->identity = identity;
	side->local = endpoint != NULL;
	if (endpoint) {
		side->policy_rev = endpoint->policy_rev;
		side->id = endpoint->id;
		side->flags = endpoint->flags;
	}
}

/*
 * Note who began the connection and who was spoken to, and what is known of it. The verifier, which
 * tells pointers and their absence apart, does not do so with what lies in memory: without this it
 * would walk all that follows once for every combination.
 */
static __always_inline void note_sides(struct packet *p, const struct ct_entry *entry,
				       const struct endpoint_info *src,
				       const struct endpoint_info *dst)
{
	bool reply = p->seen.reason == REASON_REPLY;

	/* identities as they are now: an end may have got another one since the connection began */
	note_side(reply ? &p->responder : &p->initiator, src, p->src_identity);
	note_side(reply ? &p->initiator : &p->responder, dst, p->dst_identity);
	p->tracked = entry != NULL;
	p->ct_flags = entry ? entry->flags : 0;
	p->ct_proxy_port = entry ? entry->proxy_port : 0;
	p->port = policy_port(p, reply);
	p->judged.proxy_port = 0;
	barrier();
}

/* Ask one side, and see whether its policy wants another proxy than before. */
static __always_inline int ask(struct __sk_buff *skb, struct packet *p, const struct side *side,
			       __u32 peer, const __u8 direction, const __u8 family)
{
	int verdict;

	if (p->seen.reason != REASON_REPLY) {
		p->endpoint = side->id;
		p->direction = direction;
	}
	verdict = forget(p, policy_check(skb, p, side, peer, direction, family));
	if (p->judged.proxy_port != redirect_of(p, direction == DIR_INGRESS))
		p->flags |= PACKET_CHANGED;
	return verdict;
}

/*
 * Ask the policy of both local ends. For an answer, that is the question of the one who started: what
 * is asked is always whether the initiator may speak to the responder. Where egress goes through a
 * proxy, ingress is asked when the proxy speaks to the responder; of the node itself it is asked now,
 * as what a proxy sends to it never leaves the stack.
 */
static __always_inline int judge(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	__u16 proxy_port;
	int verdict = 0;

	if (p->initiator.local && !egress_decided(p))
		verdict = ask(skb, p, &p->initiator, p->responder.identity, DIR_EGRESS, family);
	if (forget(p, verdict))
		return p->verdict;
	proxy_port = p->judged.proxy_port;
	if (!p->responder.local || ingress_decided(p) ||
	    (proxy_port && !(p->responder.flags & ENDPOINT_HOST)))
		return 0;
	verdict = ask(skb, p, &p->responder, p->initiator.identity, DIR_INGRESS, family);
	if (!verdict && proxy_port) {
		p->judged.proxy_port = proxy_port;
		if (p->seen.reason != REASON_REPLY) {
			p->endpoint = p->initiator.id;
			p->direction = DIR_EGRESS;
		}
	}
	return forget(p, verdict);
}

/* Write down under which revision of their policies, and for whom, the connection is allowed. */
static __always_inline void ct_renew(const struct packet *p, struct ct_entry *entry)
{
	if (p->initiator.local)
		entry->out_rev = p->initiator.policy_rev;
	if (p->responder.local)
		entry->in_rev = p->responder.policy_rev;
	if (p->seen.reason != REASON_REPLY) {
		entry->src_identity = p->src_identity;
		entry->dst_identity = p->dst_identity;
		if (ct_opens(p) && !ct_in_use(entry)) {
			entry->rev_nat = p->lb_rev_nat;
			entry->backend = p->lb_backend;
			entry->flags &= ~CT_DSR;
			if (p->asked_other)
				entry->flags |= CT_DSR;
		}
	}
	if (p->judged.cookie)
		entry->cookie = p->judged.cookie;
}

/*
 * A connection whose proxy policy has changed: it began as something else than it has to be now, so
 * it ends. The listener that gets a segment of it answers with RST, and nothing of the stream goes
 * on to the server. Datagrams and a new SYN begin anew. 0 is anew.
 */
static __always_inline int end_connection(struct packet *p)
{
	p->flags &= ~PACKET_PROXIED;
	if (p->seen.reason == REASON_REPLY)
		return POLICY_DROP(DROP_POLICY_DENIED);
	if (!is_tcp(p) || ct_opens(p))
		return 0;
	p->proxy_port = p->judged.proxy_port ? p->judged.proxy_port : p->ct_proxy_port;
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

/*
 * An answer to somebody who asked a frontend goes on with its address. Whoever asks says anew which
 * one it is, unless only the first packet could: the same two ends may speak past the service next.
 * The answer to a SYN on a connection in use is that connection's.
 */
static __always_inline void follow_service(struct packet *p, struct ct_entry *entry)
{
	if (p->seen.reason == REASON_REPLY)
		p->answers = entry->rev_nat;
	else if (!(entry->flags & CT_DSR) && !(ct_opens(p) && ct_in_use(entry)))
		entry->rev_nat = p->lb_rev_nat;
}

static __always_inline int admitted(const struct packet *p)
{
	return unlikely_(p->flags & PACKET_PROXIED) ? ADMIT_PROXY : 0;
}

/*
 * Judge a connection that is new, or about which the answer may have changed. 0 is one that goes on
 * and has to be renewed; ADMIT_DONE needs nothing more. The entry of a connection that is refused
 * now stays, out of date: without it the answers still under way would open the connection anew from
 * the other side. Nothing renews it, so it dies with its lifetime.
 */
static __always_inline int judge_anew(struct __sk_buff *skb, struct packet *p, __u32 now,
				      const __u8 family)
{
	int verdict = judge(skb, p, family);

	if (verdict)
		return verdict;
	if (unlikely_(is_dry_run(p)))
		return DRY_RUN_PASSES;
	if (p->flags & PACKET_ICMP_ERROR)
		return ADMIT_DONE;
	if (p->tracked && p->flags & PACKET_CHANGED) {
		/* the end itself, from the listener or a server that has heard of it */
		if (p->seen.reason == REASON_REPLY && p->tcp_flags & TCP_RST)
			return ADMIT_DONE;
		verdict = end_connection(p);
		if (verdict)
			return verdict;
		p->tracked = false;
	}
	if (p->tracked)
		return 0;
	if (p->judged.proxy_port) {
		p->proxy_port = p->judged.proxy_port;
		p->flags |= PACKET_PROXIED;
	}
	verdict = ct_create(skb, p, now, family);
	return verdict ? verdict : ADMIT_DONE;
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
	if (entry && unlikely_(entry->rev_nat != p->lb_rev_nat))
		follow_service(p, entry);
	barrier();
	if (unlikely_(!entry || !ct_current(p, entry, src, dst))) {
		note_sides(p, entry, src, dst);
		verdict = judge_anew(skb, p, now, family);
		if (forget(p, verdict))
			return p->verdict == ADMIT_DONE ? admitted(p) : p->verdict;
		entry = ct_find(&p->key, is_tcp(p), family);
		/* pushed out in between, which the next packet mends */
		if (!entry)
			return admitted(p);
		ct_renew(p, entry);
	}
	ct_update(skb, p, entry, now);
	return admitted(p);
}

#endif
