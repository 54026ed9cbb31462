/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Events for user space: traces, drops and policy verdicts, in one fixed record (struct event).
 *
 * Drops and verdicts are always written (unless switched off); traces follow the aggregation level:
 * from LOW on no from-* point, from MEDIUM on a to-* point only when the connection asks for it.
 */
#ifndef CILIUM_EVENTS_H
#define CILIUM_EVENTS_H

#include "capture.h"
#include "dry_run.h"
#include "metrics.h"
#include "packet.h"
#include "ring.h"

static __always_inline void event_addresses(struct __sk_buff *skb, struct event *e)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if (data + ETH_HLEN > end)
		return;
	e->ethertype = eth->h_proto;
	__builtin_memcpy(e->smac, eth->h_source, 6);
	__builtin_memcpy(e->dmac, eth->h_dest, 6);
	e->flags |= EVENT_ETHERNET;
}

static __always_inline void event_packet(struct event *e, const struct packet *p, const __u8 family)
{
	if (family == FAMILY_IPV6)
		e->flags |= EVENT_IPV6;
	if (p->flags & PACKET_L3)
		e->flags |= EVENT_L3;
	if (p->flags & PACKET_L4)
		e->flags |= EVENT_L4;
	if (p->flags & PACKET_FRAGMENT)
		e->flags |= EVENT_FRAGMENT;
	if (p->flags & PACKET_TUNNEL)
		e->flags |= EVENT_TUNNEL;
	if (p->flags & PACKET_PROXIED || p->origin >= ORIGIN_PROXY_INGRESS)
		e->flags |= EVENT_PROXIED;
	e->proto = p->tuple.proto;
	e->endpoint = p->endpoint;
	e->src_identity = p->src_identity;
	e->dst_identity = p->dst_identity;
	__builtin_memcpy(e->saddr, &p->tuple.saddr, 16);
	__builtin_memcpy(e->daddr, &p->tuple.daddr, 16);
	if (p->tuple.proto == IPPROTO_ICMP || p->tuple.proto == IPPROTO_ICMPV6) {
		e->sport = bpf_htons(p->icmp_type);
		e->dport = bpf_htons(p->icmp_code);
	} else {
		e->sport = p->tuple.sport;
		e->dport = p->tuple.dport;
	}
	e->tcp_flags = p->tuple.proto == IPPROTO_SCTP ? p->icmp_type : p->tcp_flags;
	e->tunnel_peer = p->peer;
}

static __always_inline void event_write(struct __sk_buff *skb, struct event *e, __u32 sequence)
{
	e->ifindex = skb->ifindex;
	event_addresses(skb, e);
	event_commit(e, sequence);
}

static __always_inline bool tracing(const struct config *config, __u32 below)
{
	return config->flags & CONFIG_HUBBLE && config->aggregation < below;
}

/* A packet seen by itself. */
static __always_inline void see(struct __sk_buff *skb, struct packet *p, __u8 reason, bool report)
{
	p->seen.reason = reason;
	p->seen.report = report;
	p->seen.packets = 1;
	p->seen.bytes = skb->len;
}

/* Where there is no connection to ask, the TCP flags that mark its ends are worth an event. */
static __always_inline void see_alone(struct __sk_buff *skb, struct packet *p)
{
	see(skb, p, REASON_UNKNOWN, p->tcp_flags & config_of()->aggregation_flags);
}

static __always_inline void trace(struct __sk_buff *skb, const struct packet *p, const __u8 point,
				  __u32 dst_id, const union address *original, const __u8 family)
{
	__u32 sequence;
	struct event *e = event_begin(EVENT_TRACE, point, &sequence);

	if (!e)
		return;
	e->reason = p->seen.reason;
	e->dst_id = dst_id;
	e->packets = p->seen.packets;
	e->bytes = p->seen.bytes;
	event_packet(e, p, family);
	if (original)
		__builtin_memcpy(e->orig_saddr, original, 16);
	event_write(skb, e, sequence);
}

/* A packet entering the data plane: nothing is known of its connection yet. */
static __always_inline void trace_from(struct __sk_buff *skb, struct packet *p, const __u8 point,
				       const __u8 family)
{
	if (likely_(!tracing(config_of(), AGGREGATE_LOW)) || is_dry_run(p))
		return;
	see(skb, p, REASON_UNKNOWN, true);
	trace(skb, p, point, 0, NULL, family);
}

/* Is this sighting of a connection worth a trace? */
static __always_inline bool traced(const struct packet *p)
{
	const struct config *config = config_of();

	return config->flags & CONFIG_HUBBLE &&
	       (p->seen.report || config->aggregation < AGGREGATE_MEDIUM);
}

/* The packet leaves the data plane here, unless something stops it yet. */
static __always_inline void leaves(struct packet *p, const __u8 point)
{
	p->seen.left = point + 1;
}

static __always_inline void trace_to(struct __sk_buff *skb, struct packet *p, const __u8 point,
				     __u32 dst_id, const __u8 family)
{
	leaves(p, point);
	if (traced(p))
		trace(skb, p, point, dst_id, p->flags & PACKET_TRANSLATED ? &p->original : NULL,
		      family);
}

static __always_inline void report_verdict(struct __sk_buff *skb, const struct packet *p,
					   const __u8 direction, int verdict, const __u8 family)
{
	struct event *e;
	__u32 sequence;

	if (!(config_of()->flags & CONFIG_POLICY_VERDICTS))
		return;
	e = event_begin(EVENT_POLICY_VERDICT, 0, &sequence);
	if (!e)
		return;
	e->verdict = verdict ? -(__s32)drop_reason_of(verdict) : bpf_ntohs(p->judged.proxy_port);
	e->cookie = p->judged.cookie;
	e->match = p->judged.match;
	e->packets = 1;
	e->bytes = skb->len;
	event_packet(e, p, family);
	e->flags |= direction == DIR_INGRESS ? EVENT_INGRESS : EVENT_EGRESS;
	if (p->judged.audited)
		e->flags |= EVENT_AUDITED;
	event_write(skb, e, sequence);
}

/* Count a drop and tell of it. */
static __always_inline void report_drop(struct __sk_buff *skb, const struct packet *p, int verdict,
					const __u8 family)
{
	struct event *e;
	__u32 sequence;

	count(drop_reason_of(verdict), p->direction, drop_file_of(verdict), drop_line_of(verdict),
	      skb->len);
	if (!(config_of()->flags & CONFIG_DROPS))
		return;
	e = event_begin(EVENT_DROP, drop_reason_of(verdict), &sequence);
	if (!e)
		return;
	e->line = drop_line_of(verdict);
	e->file = drop_file_of(verdict);
	e->packets = 1;
	e->bytes = skb->len;
	event_packet(e, p, family);
	if (p->direction == DIR_INGRESS) {
		e->flags |= EVENT_INGRESS;
		e->dst_id = p->endpoint;
	} else {
		e->flags |= EVENT_EGRESS;
	}
	event_write(skb, e, sequence);
}

/* Does somebody want to know of each packet: by debug events, or whole? */
static __always_inline bool watched(void)
{
	return config_of()->flags & CONFIG_DEBUG || capture_of()->until_ns;
}

/*
 * The one exit of every program: passes an action on, turns a drop into its count and its event.
 * What is to be watched goes on in watch.c, which ends with the action that it finds in the packet.
 */
static __always_inline int conclude(struct __sk_buff *skb, struct packet *p, int verdict,
				    const __u8 family)
{
	verdict = forget(p, verdict);
	if (unlikely_(verdict < 0)) {
		if (unlikely_(is_dry_run(p)))
			return answer_dry_run(skb, p, verdict);
		report_drop(skb, p, verdict, family);
		p->seen.dropped = drop_reason_of(verdict);
		verdict = TC_ACT_SHOT;
	}
	if (unlikely_(watched())) {
		p->verdict = verdict;
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_WATCH_IPV4 : CALL_WATCH_IPV6);
	}
	return verdict;
}

/* The exit of entry programs, which know nothing of the packet yet. */
static __always_inline int refuse(struct __sk_buff *skb, int verdict, const __u8 direction)
{
	struct packet *p = packet_begin(direction);

	return p ? conclude(skb, p, verdict, FAMILY_IPV4) : TC_ACT_SHOT;
}

#endif
