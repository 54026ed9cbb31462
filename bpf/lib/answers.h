/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Whoever asks a frontend is answered by it: what a backend sends gets the frontend's address where
 * the connection is known, just before it is delivered.
 */
#ifndef CILIUM_ANSWERS_H
#define CILIUM_ANSWERS_H

#include "lb_connections.h"
#include "nat.h"

#define LB_DROP(reason) DROP_AT(FILE_LB, reason)

static __always_inline void note_original(struct packet *p)
{
	p->original = p->tuple.saddr;
	p->flags |= PACKET_TRANSLATED;
}

/* The frontend that the client of `t`, an answer of a backend, has asked: p->answers. */
static __always_inline bool frontend_of(const struct packet *p, const struct tuple *t,
					struct mapping *asked, const __u8 family)
{
	const struct lb_frontend *frontend;
	__u32 id = p->answers;

	if (unlikely_(id == LB_OTHER_FRONTEND))
		return nat_find(t, NAT_OUT, asked, family);
	frontend = map_lookup(map_of(LB_REVERSE_NAT), &id);
	/* the service is gone, and nobody else's address would be an answer */
	if (!frontend || !frontend->port)
		return false;
	__builtin_memcpy(&asked->address, frontend->addr, 16);
	asked->port = frontend->port;
	return true;
}

/*
 * An error about what went to the backend: the client knows but the frontend. A router on the way
 * speaks with its own address.
 */
static __always_inline int answer_error(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	struct mapping asked = {};
	struct tuple back = {};
	struct quoted q = {};

	if (!quote(skb, p, &q, family))
		return LB_DROP(DROP_INVALID_PACKET_DROPPED);
	reversed(&back, &q.tuple);
	if (!frontend_of(p, &back, &asked, family))
		return LB_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	if (rewrite_quoted(skb, p, &q, false, &asked.address, asked.port, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	if (!same_address(&p->tuple.saddr, &q.tuple.daddr, family))
		return 0;
	note_original(p);
	if (rewrite_address(skb, p, true, &asked.address, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* Give the packet the source that was asked: p->answers. Returns 0 or a drop. */
static __always_inline int answer_as_frontend(struct __sk_buff *skb, struct packet *p,
					      const __u8 family)
{
	struct mapping asked = {};

	if (unlikely_(p->flags & PACKET_ICMP_ERROR))
		return forget(p, answer_error(skb, p, family));
	if (!frontend_of(p, &p->tuple, &asked, family))
		return LB_DROP(DROP_SERVICE_BACKEND_NOT_FOUND);
	note_original(p);
	if (rewrite_port(skb, p, true, asked.port, family) ||
	    rewrite_address(skb, p, true, &asked.address, family))
		return LB_DROP(DROP_ERROR_WRITING_TO_PACKET);
	if (unlikely_(p->tcp_flags & (TCP_FIN | TCP_RST)))
		lb_connection_closes(p, family);
	return 0;
}

#endif
