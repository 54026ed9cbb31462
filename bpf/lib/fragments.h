/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Fragments. Only the first one has ports; it leaves them in a map under the datagram's id, and the
 * later ones are judged by them. A later fragment that comes before the first is dropped: without
 * ports there is no policy.
 */
#ifndef CILIUM_FRAGMENTS_H
#define CILIUM_FRAGMENTS_H

#include "packet.h"

#define FRAGMENT_DROP(reason) DROP_AT(FILE_FRAGMENTS, reason)

/*
 * Fragments may not reach back into the layer 4 header: a later one at that offset would rewrite
 * what policy has just looked at (RFC 1858). 24 bytes covers the ports and flags of every protocol.
 */
static __always_inline bool overlaps_header(__u16 offset_words)
{
	return offset_words < 3;
}

static __always_inline int fragment_restore(struct packet *p, const struct frag_ports *ports)
{
	if (!ports)
		return FRAGMENT_DROP(DROP_FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND);
	p->tuple.sport = ports->sport;
	p->tuple.dport = ports->dport;
	/* of ICMP only echo is worth fragmenting; who asks has the identifier (struct ct_key4) */
	if (p->tuple.proto == IPPROTO_ICMP)
		p->icmp_type = ports->sport ? ICMP_ECHO : ICMP_ECHOREPLY;
	else if (p->tuple.proto == IPPROTO_ICMPV6)
		p->icmp_type = ports->sport ? ICMPV6_ECHO_REQUEST : ICMPV6_ECHO_REPLY;
	p->flags |= PACKET_L4;
	return 0;
}

static __always_inline struct frag_key4 fragment_key4(const struct packet *p, __u16 id)
{
	struct frag_key4 key = {
		.saddr = p->tuple.saddr.v4,
		.daddr = p->tuple.daddr.v4,
		.id = id,
		.proto = p->tuple.proto,
	};

	return key;
}

static __always_inline struct frag_key6 fragment_key6(const struct packet *p, __u32 id)
{
	struct frag_key6 key = {
		.id = id,
		.proto = p->tuple.proto,
	};

	__builtin_memcpy(key.saddr, &p->tuple.saddr, 16);
	__builtin_memcpy(key.daddr, &p->tuple.daddr, 16);
	return key;
}

static __always_inline int fragment_ports4(struct packet *p, __u16 id, __u16 offset_words)
{
	struct frag_key4 key = fragment_key4(p, id);

	if (overlaps_header(offset_words))
		return FRAGMENT_DROP(DROP_INVALID_PACKET_DROPPED);
	return fragment_restore(p, map_lookup(map_of(FRAG4), &key));
}

static __always_inline int fragment_ports6(struct packet *p, __u32 id, __u16 offset_words)
{
	struct frag_key6 key = fragment_key6(p, id);

	if (overlaps_header(offset_words))
		return FRAGMENT_DROP(DROP_INVALID_PACKET_DROPPED);
	return fragment_restore(p, map_lookup(map_of(FRAG6), &key));
}

/* Errors are short; one in pieces has no honest sender. */
static __always_inline bool fragments_forbidden(const struct packet *p)
{
	return p->flags & PACKET_ICMP_ERROR;
}

static __always_inline int fragment_remember4(struct packet *p, __u16 id)
{
	struct frag_key4 key = fragment_key4(p, id);
	struct frag_ports ports = {.sport = p->tuple.sport, .dport = p->tuple.dport};

	if (fragments_forbidden(p) || map_update(map_of(FRAG4), &key, &ports, BPF_ANY))
		return FRAGMENT_DROP(DROP_IP_FRAGMENTATION_NOT_SUPPORTED);
	return 0;
}

static __always_inline int fragment_remember6(struct packet *p, __u32 id)
{
	struct frag_key6 key = fragment_key6(p, id);
	struct frag_ports ports = {.sport = p->tuple.sport, .dport = p->tuple.dport};

	if (fragments_forbidden(p) || map_update(map_of(FRAG6), &key, &ports, BPF_ANY))
		return FRAGMENT_DROP(DROP_IP_FRAGMENTATION_NOT_SUPPORTED);
	return 0;
}

#endif
