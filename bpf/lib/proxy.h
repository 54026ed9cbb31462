/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Connections that go through a proxy of the node.
 *
 * The client's connection ends at the proxy: its entry says CT_PROXY_REDIRECT and which port, what
 * the client sends goes up the stack to that port's listener, and what the proxy answers, with the
 * address of the server, is recognised by the entry. What the proxy opens itself is marked as its
 * own. For egress it uses the pod's address, so these connections have a zone of their own: an answer
 * to a pod that is none of the pod's connections, or of one that is redirected, may be the proxy's.
 */
#ifndef CILIUM_PROXY_H
#define CILIUM_PROXY_H

#include "conntrack.h"
#include "delivery.h"
#include "endpoints.h"

#define PROXY_DROP(reason) DROP_AT(FILE_PROXY, reason)

/* What admit() says of a packet that a proxy gets; see PACKET_PROXIED. */
#define ADMIT_PROXY 1

static __always_inline bool proxies_on(void)
{
	return config_of()->flags & CONFIG_PROXY;
}

static __always_inline __u8 origin_of(const struct __sk_buff *skb)
{
	switch (skb->mark & MARK_MASK) {
	case MARK_PROXY_INGRESS:
		return ORIGIN_PROXY_INGRESS;
	case MARK_PROXY_EGRESS:
		return ORIGIN_PROXY_EGRESS;
	case MARK_DRY_RUN:
		return ORIGIN_DRY_RUN;
	}
	return ORIGIN_STACK;
}

/* Does the proxy itself speak, and not to a server but to its client? */
static __always_inline bool answers_client(const struct packet *p, const struct ct_entry *entry)
{
	bool ingress = entry->flags & CT_PROXY_INGRESS;

	switch (p->origin) {
	case ORIGIN_PROXY_EGRESS:
		return !ingress;
	case ORIGIN_PROXY_INGRESS:
		return ingress;
	}
	/* the stack, when it has no socket left, refuses without a mark */
	return p->origin == ORIGIN_STACK;
}

/*
 * The connection of a packet, where proxies come in: `entry` is what was found in the zone of the
 * pods, a redirected connection or none, and what is returned may be one of a proxy. Only a proxy
 * begins these; everybody else may but answer.
 */
static __always_inline struct ct_entry *proxied_connection(struct packet *p, struct ct_entry *entry,
							   __u32 now, const __u8 family)
{
	bool reply = entry && p->seen.reason == REASON_REPLY;
	struct ct_entry *own;

	if (reply ? answers_client(p, entry) :
		    p->origin != ORIGIN_PROXY_EGRESS && (entry || ct_opens(p)))
		return entry;
	own = ct_lookup(p, CT_ZONE_PROXIES, now, family);
	p->zone = CT_ZONE_PROXIES;
	if (p->origin == ORIGIN_PROXY_EGRESS)
		return own;
	if (own && p->seen.reason == REASON_REPLY) {
		/* the server's end is redirected too: only the proxy speaks for it */
		if (own->flags & CT_PROXY_REDIRECT && p->origin == ORIGIN_WIRE)
			p->flags |= PACKET_STRAY;
		return own;
	}
	if (reply && p->origin == ORIGIN_WIRE)
		p->flags |= PACKET_STRAY;
	p->seen.reason = reply ? REASON_REPLY : REASON_NEW;
	p->zone = CT_ZONE_PODS;
	if (family == FAMILY_IPV4)
		p->key.v4.zone = CT_ZONE_PODS;
	else
		p->key.v6.zone = CT_ZONE_PODS;
	return entry;
}

/* Note that the packet goes to a proxy, if its connection says so. */
static __always_inline void follow_redirect(struct packet *p, const struct ct_entry *entry)
{
	if (p->seen.reason == REASON_REPLY) {
		/* to the proxy as the client of the server; other answers go on to the client */
		if (p->zone == CT_ZONE_PROXIES)
			p->flags |= PACKET_PROXIED;
	} else if (entry->flags & CT_PROXY_REDIRECT) {
		p->flags |= PACKET_PROXIED;
		p->proxy_port = entry->proxy_port;
	}
}

/*
 * Was the initiator's egress policy asked when the client spoke to the proxy? The node, with whose
 * address a proxy for ingress speaks, has no say in it.
 */
static __always_inline bool egress_decided(const struct packet *p)
{
	if (p->tracked)
		return p->ct_flags & CT_PROXY;
	return p->origin == ORIGIN_PROXY_INGRESS || p->origin == ORIGIN_PROXY_EGRESS;
}

/* Was the responder's ingress policy asked when the client spoke to the proxy? */
static __always_inline bool ingress_decided(const struct packet *p)
{
	if (p->zone == CT_ZONE_PROXIES)
		return false;
	return p->tracked ? p->ct_flags & CT_PROXY : p->origin == ORIGIN_PROXY_INGRESS;
}

/* The proxy that the connection goes to by the policy of one side. */
static __always_inline __u16 redirect_of(const struct packet *p, const bool ingress)
{
	if (!(p->ct_flags & CT_PROXY_REDIRECT) || !(p->ct_flags & CT_PROXY_INGRESS) == ingress)
		return 0;
	return p->ct_proxy_port;
}

/*
 * Must the listener get the packet? A connection of it that exists is found by the kernel itself, but
 * for datagrams, of which each looks like the first.
 */
static __always_inline bool for_listener(const struct packet *p)
{
	return p->proxy_port &&
	       (p->flags & PACKET_TO_LISTENER || p->tuple.proto == IPPROTO_UDP || ct_opens(p));
}

/* Ingress hooks: up the stack, to the proxy. The packet at hand stays in its room meanwhile. */
static __always_inline int to_proxy(struct __sk_buff *skb, const __u8 family)
{
	bpf_tail_call_(map_of(CALLS), skb,
		       family == FAMILY_IPV4 ? CALL_TO_PROXY_IPV4 : CALL_TO_PROXY_IPV6);
	return PROXY_DROP(DROP_MISSED_TAIL_CALL);
}

static __always_inline void trace_to_proxy(struct __sk_buff *skb, struct packet *p,
					   const __u8 family)
{
	trace_to(skb, p, TRACE_TO_PROXY, bpf_ntohs(p->proxy_port), family);
	count(REASON_METRIC_FORWARDED, p->direction, FILE_PROXY, __LINE__, skb->len);
}

static __always_inline __u32 mark_to_proxy(const struct packet *p)
{
	return MARK_TO_PROXY | (__u32)p->proxy_port << 16;
}

/* Egress hooks, where no socket can be chosen: back into the node by the ingress of cilium_host. */
static __always_inline int bounce_to_proxy(struct __sk_buff *skb, const struct packet *p,
					   const __u8 family)
{
	const struct config *config = config_of();
	int verdict = write_macs(skb, config->net_mac, config->host_mac);

	if (verdict)
		return verdict;
	trace_to_proxy(skb, p, family);
	skb->mark = mark_to_proxy(p) | (for_listener(p) ? MARK_LISTENER : 0);
	return bpf_redirect(config->host_ifindex, BPF_F_INGRESS);
}

#endif
