// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Packets that somebody watches: debug events of each, and whole packets. Every program ends here
 * while that is so, and with the action that it had decided on; nobody pays for it otherwise.
 */
#define SOURCE_FILE FILE_WATCH

#include "lib/events.h"

/* Say something of a packet: enum debug_message. */
static __always_inline void debug(struct __sk_buff *skb, const struct packet *p, const __u8 message,
				  __u32 first, __u32 second)
{
	__u32 sequence;
	struct event *e = event_begin(EVENT_DEBUG, message, &sequence);

	if (!e)
		return;
	e->endpoint = p->endpoint;
	e->ifindex = bpf_get_hash_recalc(skb);
	e->src_identity = first;
	e->dst_identity = second;
	e->cookie = bpf_get_smp_processor_id();
	event_commit(e, sequence);
}

/* Show a packet as it is now: enum debug_capture_point. */
static __always_inline void show(struct __sk_buff *skb, const struct packet *p, const __u8 point,
				 const __u8 family)
{
	__u32 sequence;
	struct event *e = event_begin(EVENT_CAPTURE, point, &sequence);

	if (!e)
		return;
	e->packets = 1;
	e->bytes = skb->len;
	event_packet(e, p, family);
	event_write(skb, e, sequence);
}

static __always_inline void tell(struct __sk_buff *skb, const struct packet *p, const __u8 family)
{
	if (p->flags & PACKET_L4)
		debug(skb, p, DEBUG_CT_VERDICT, p->seen.reason, p->answers);
	if (p->seen.dropped) {
		if (p->seen.dropped == DROP_POLICY_DENIED || p->seen.dropped == DROP_POLICY_DENY)
			debug(skb, p, DEBUG_POLICY_DENIED, p->src_identity, p->dst_identity);
		return;
	}
	switch (p->seen.left - 1) {
	case TRACE_TO_LXC:
		debug(skb, p, DEBUG_LOCAL_DELIVERY, p->endpoint, p->src_identity);
		show(skb, p, DEBUG_CAPTURE_DELIVERY, family);
		break;
	case TRACE_TO_OVERLAY:
		debug(skb, p, DEBUG_ENCAP, p->peer, p->src_identity);
		break;
	case TRACE_TO_HOST:
		debug(skb, p, DEBUG_TO_HOST, 0, 0);
		break;
	case TRACE_TO_STACK:
		debug(skb, p, DEBUG_TO_STACK, 0, 0);
		break;
	case TRACE_TO_PROXY:
		show(skb, p, DEBUG_CAPTURE_PROXY_POST, family);
		break;
	}
}

/* On its way out of the device, with another source than it came with. */
static __always_inline bool is_masqueraded(const struct packet *p)
{
	return p->flags & PACKET_TRANSLATED && p->direction == DIR_EGRESS && !p->seen.dropped &&
	       (!p->seen.left || p->seen.left == TRACE_TO_NETWORK + 1);
}

static __always_inline int watch(struct __sk_buff *skb, const __u8 family)
{
	struct packet *p = packet_at_hand();

	if (!p)
		return TC_ACT_SHOT;
	if (config_of()->flags & CONFIG_DEBUG && is_masqueraded(p))
		show(skb, p, DEBUG_CAPTURE_SNAT_POST, family);
	if (p->seen.left || p->seen.dropped) {
		if (config_of()->flags & CONFIG_DEBUG)
			tell(skb, p, family);
		if (p->seen.dropped)
			capture(skb, p, CAPTURE_DROPPED, p->seen.dropped, family);
		else
			capture(skb, p, p->seen.left - 1, 0, family);
	}
	return p->verdict;
}

int tail_watch_ipv4(struct __sk_buff *skb)
{
	return watch(skb, FAMILY_IPV4);
}

int tail_watch_ipv6(struct __sk_buff *skb)
{
	return watch(skb, FAMILY_IPV6);
}
