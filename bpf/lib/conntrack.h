/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Connection tracking: one entry for a connection, found by both directions with one look-up.
 *
 * An entry is a promise that policy has allowed the connection: under which revision of each local
 * end's policy is written in it, so an established packet costs no policy look-up, and a changed
 * policy is noticed by the next packet.
 *
 * The counters of an entry are not atomic. The two directions write different ones, and a direction
 * that moves between processors may lose a count, which is cheaper than a locked bus per packet.
 */
#ifndef CILIUM_CONNTRACK_H
#define CILIUM_CONNTRACK_H

#include "events.h"

#define CONNTRACK_DROP(reason) DROP_AT(FILE_CONNTRACK, reason)

/* Order the ends by address, then by port. Returns whether the source is the high one. */
static __always_inline bool ct_key_of(union ct_key *key, const struct tuple *t, const __u16 zone,
				      const __u8 family)
{
	bool high;

	if (family == FAMILY_IPV4) {
		__u32 s = bpf_ntohl(t->saddr.v4), d = bpf_ntohl(t->daddr.v4);

		high = s > d || (s == d && bpf_ntohs(t->sport) > bpf_ntohs(t->dport));
		key->v4.addr_low = high ? t->daddr.v4 : t->saddr.v4;
		key->v4.addr_high = high ? t->saddr.v4 : t->daddr.v4;
		key->v4.port_low = high ? t->dport : t->sport;
		key->v4.port_high = high ? t->sport : t->dport;
		key->v4.proto = t->proto;
		key->v4.kind = CT_FLOW;
		key->v4.zone = zone;
		return high;
	}

	__u64 s = bpf_ntohll(t->saddr.halves[0]), d = bpf_ntohll(t->daddr.halves[0]);

	if (s == d) {
		s = bpf_ntohll(t->saddr.halves[1]);
		d = bpf_ntohll(t->daddr.halves[1]);
	}
	high = s > d || (s == d && bpf_ntohs(t->sport) > bpf_ntohs(t->dport));
	if (high) {
		__builtin_memcpy(key->v6.addr_low, &t->daddr, 16);
		__builtin_memcpy(key->v6.addr_high, &t->saddr, 16);
	} else {
		__builtin_memcpy(key->v6.addr_low, &t->saddr, 16);
		__builtin_memcpy(key->v6.addr_high, &t->daddr, 16);
	}
	key->v6.port_low = high ? t->dport : t->sport;
	key->v6.port_high = high ? t->sport : t->dport;
	key->v6.proto = t->proto;
	key->v6.kind = CT_FLOW;
	key->v6.zone = zone;
	return high;
}

static __always_inline struct ct_entry *ct_find(const union ct_key *key, bool tcp,
						const __u8 family)
{
	/* the verifier inlines a look-up only where the map is a constant */
	if (family == FAMILY_IPV4)
		return tcp ? map_lookup(map_of(CT_TCP4), key) : map_lookup(map_of(CT_ANY4), key);
	return tcp ? map_lookup(map_of(CT_TCP6), key) : map_lookup(map_of(CT_ANY6), key);
}

static __always_inline __u64 ct_map_of(bool tcp, const __u8 family)
{
	if (family == FAMILY_IPV4)
		return tcp ? map_of(CT_TCP4) : map_of(CT_ANY4);
	return tcp ? map_of(CT_TCP6) : map_of(CT_ANY6);
}

static __always_inline bool is_tcp(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_TCP;
}

/* A packet that asks for a connection, whatever was there before. */
static __always_inline bool ct_opens(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * Do both ends of a TCP connection speak, and neither has closed it? A SYN on it changes nothing: who
 * is asked keeps it and answers with an ACK (RFC 5961, 4), which a dead connection's client resets.
 */
static __always_inline bool ct_in_use(const struct ct_entry *entry)
{
	const __u32 both = CT_SEEN_REPLY | CT_SEEN_NON_SYN;

	return (entry->flags & (both | CT_TX_CLOSING | CT_RX_CLOSING)) == both;
}

/* A connection that lives; `high` is whether the source is the end in the high half of its key. */
static __always_inline struct ct_entry *ct_alive(const struct tuple *t, const __u16 zone, __u32 now,
						 bool *high, const __u8 family)
{
	union ct_key key = {};
	struct ct_entry *entry;

	*high = ct_key_of(&key, t, zone, family);
	entry = ct_find(&key, t->proto == IPPROTO_TCP, family);
	return entry && (__s32)(entry->lifetime - now) >= 0 ? entry : NULL;
}

/* The packet's connection, NULL when there is none alive. Says in `seen` which side sent it. */
static __always_inline struct ct_entry *ct_lookup(struct packet *p, const __u16 zone, __u32 now,
						  const __u8 family)
{
	struct ct_entry *entry;

	p->sender_high = ct_key_of(&p->key, &p->tuple, zone, family);
	entry = ct_find(&p->key, is_tcp(p), family);
	if (!entry || (__s32)(entry->lifetime - now) < 0)
		return NULL;
	/* a SYN on a closing connection opens the next one, whichever end sends it */
	if (unlikely_(entry->flags & (CT_TX_CLOSING | CT_RX_CLOSING)) && ct_opens(p))
		return NULL;
	p->seen.reason = !(entry->flags & CT_INITIATOR_HIGH) == !p->sender_high ?
				 REASON_ESTABLISHED :
				 REASON_REPLY;
	return entry;
}

static __always_inline __u32 ct_lifetime(const struct config *config, bool tcp, __u32 flags)
{
	if (!tcp)
		return config->ct_timeout_any;
	if (unlikely_((flags & CT_TX_CLOSING) && (flags & CT_RX_CLOSING)))
		return config->ct_timeout_tcp_fin;
	return flags & CT_SEEN_NON_SYN ? config->ct_timeout_tcp : config->ct_timeout_tcp_syn;
}

/* State bits after this packet: a FIN closes the sender's side, a RST both. */
static __always_inline __u32 ct_flags_after(__u32 flags, const struct packet *p, bool reply)
{
	if (unlikely_(p->tcp_flags & TCP_RST))
		flags |= CT_TX_CLOSING | CT_RX_CLOSING;
	else if (unlikely_(p->tcp_flags & TCP_FIN))
		flags |= reply ? CT_RX_CLOSING : CT_TX_CLOSING;
	if (!(p->tcp_flags & TCP_SYN))
		flags |= CT_SEEN_NON_SYN;
	return reply ? flags | CT_SEEN_REPLY : flags;
}

/* Count the packet, keep the entry alive, and decide whether this sighting is reported. */
static __always_inline void ct_update(struct __sk_buff *skb, struct packet *p,
				      struct ct_entry *entry, __u32 now)
{
	const struct config *config = config_of();
	bool reply = p->seen.reason == REASON_REPLY;
	__u32 flags = ct_flags_after(entry->flags, p, reply);
	__u32 lifetime = now + ct_lifetime(config, is_tcp(p), flags);
	__u8 news;

	if (entry->flags != flags)
		entry->flags = flags;
	if (entry->lifetime != lifetime)
		entry->lifetime = lifetime;
	if (reply) {
		entry->rx_packets++;
		entry->rx_bytes += skb->len;
		news = p->tcp_flags & ~entry->rx_flags & config->aggregation_flags;
		p->seen.report = news || now - entry->rx_report >= config->aggregation_interval;
		if (likely_(!p->seen.report && config->aggregation >= AGGREGATE_MEDIUM))
			return;
		p->seen.packets = (__u32)entry->rx_packets - entry->rx_reported_packets;
		p->seen.bytes = (__u32)entry->rx_bytes - entry->rx_reported_bytes;
		entry->rx_flags |= p->tcp_flags;
		entry->rx_report = now;
		entry->rx_reported_packets = (__u32)entry->rx_packets;
		entry->rx_reported_bytes = (__u32)entry->rx_bytes;
		return;
	}
	entry->tx_packets++;
	entry->tx_bytes += skb->len;
	news = p->tcp_flags & ~entry->tx_flags & config->aggregation_flags;
	p->seen.report = news || now - entry->tx_report >= config->aggregation_interval;
	if (likely_(!p->seen.report && config->aggregation >= AGGREGATE_MEDIUM))
		return;
	p->seen.packets = (__u32)entry->tx_packets - entry->tx_reported_packets;
	p->seen.bytes = (__u32)entry->tx_bytes - entry->tx_reported_bytes;
	entry->tx_flags |= p->tcp_flags;
	entry->tx_report = now;
	entry->tx_reported_packets = (__u32)entry->tx_packets;
	entry->tx_reported_bytes = (__u32)entry->tx_bytes;
}

/* A connection that policy has just allowed. The first packet is always reported. */
static __always_inline int ct_create(struct __sk_buff *skb, struct packet *p, __u32 now,
				     const __u8 family)
{
	struct scratch *room = scratch();
	struct ct_entry *entry;
	long failed;

	if (!room)
		return CONNTRACK_DROP(DROP_CT_MAP_INSERTION_FAILED);
	entry = &room->entry;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->tx_packets = 1;
	entry->tx_bytes = skb->len;
	entry->src_identity = p->src_identity;
	entry->dst_identity = p->dst_identity;
	entry->tx_report = now;
	entry->tx_flags = p->tcp_flags;
	entry->tx_reported_packets = 1;
	entry->tx_reported_bytes = skb->len;
	entry->cookie = p->judged.cookie;
	entry->flags = ct_flags_after(p->sender_high ? CT_INITIATOR_HIGH : 0, p, false);
	if (p->initiator.local) {
		entry->flags |= CT_OUT;
		entry->out_rev = p->initiator.policy_rev;
	}
	if (p->responder.local) {
		entry->flags |= CT_IN;
		entry->in_rev = p->responder.policy_rev;
	}
	if (p->flags & PACKET_TUNNEL)
		entry->flags |= CT_FROM_TUNNEL;
	if (p->origin >= ORIGIN_PROXY_INGRESS)
		entry->flags |= CT_PROXY;
	entry->rev_nat = p->lb_rev_nat;
	entry->backend = p->lb_backend;
	if (p->asked_other)
		entry->flags |= CT_DSR;
	if (p->judged.proxy_port) {
		entry->flags |= CT_PROXY_REDIRECT;
		if (p->direction == DIR_INGRESS)
			entry->flags |= CT_PROXY_INGRESS;
		entry->proxy_port = p->judged.proxy_port;
	}
	entry->lifetime = now + ct_lifetime(config_of(), is_tcp(p), entry->flags);
	p->seen.report = true;
	failed = map_update(ct_map_of(is_tcp(p), family), &p->key, entry, BPF_ANY);
	return failed ? CONNTRACK_DROP(DROP_CT_MAP_INSERTION_FAILED) : 0;
}

#endif
