/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Who serves a client: the entry of kind CT_SERVICE that a connection to a frontend has beside its
 * own. It keeps the backend that was chosen for as long as the client speaks, whatever becomes of
 * the service meanwhile.
 */
#ifndef CILIUM_LB_CONNECTIONS_H
#define CILIUM_LB_CONNECTIONS_H

#include "conntrack.h"
#include "lb.h"

/* Key of the entry, into the packet's. Returns whether the source is the high end. */
static __always_inline bool lb_connection_key(union ct_key *key, const struct tuple *t,
					      const __u8 family)
{
	bool high = ct_key_of(key, t, CT_ZONE_PODS, family);

	if (family == FAMILY_IPV4)
		key->v4.kind = CT_SERVICE;
	else
		key->v6.kind = CT_SERVICE;
	return high;
}

static __always_inline __u32 lb_connection_lifetime(bool tcp, __u32 flags)
{
	const struct config *config = config_of();

	if (!tcp)
		return config->ct_timeout_service_any;
	if (flags & CT_TX_CLOSING && flags & CT_RX_CLOSING)
		return config->ct_timeout_tcp_fin;
	return flags & CT_SEEN_NON_SYN ? config->ct_timeout_service_tcp :
					 config->ct_timeout_tcp_syn;
}

/* The packet is one of the client (or an answer to it): keep the entry alive. */
static __always_inline void lb_connection_update(const struct packet *p, struct ct_entry *entry,
						 bool reply, __u32 now)
{
	__u32 flags = ct_flags_after(entry->flags, p, reply);
	__u32 lifetime = now + lb_connection_lifetime(is_tcp(p), flags);

	if (entry->flags != flags)
		entry->flags = flags;
	if (entry->lifetime != lifetime)
		entry->lifetime = lifetime;
}

/*
 * Does the entry not hold for this packet? A SYN where there was more than SYNs is a new connection,
 * and one to a backend that gets no new ones goes elsewhere.
 */
static __always_inline bool lb_begins_anew(const struct packet *p, const struct ct_entry *entry,
					   const struct lb_backend *backend)
{
	return ct_opens(p) && (entry->flags & (CT_TX_CLOSING | CT_RX_CLOSING | CT_SEEN_NON_SYN) ||
			       backend->state != LB_BACKEND_ACTIVE);
}

/* Who serves the client of the packet already, NULL when somebody has to be chosen. */
static __always_inline const struct lb_backend *lb_connected(struct packet *p, __u32 now,
							     const __u8 family)
{
	const struct lb_backend *backend;
	struct ct_entry *entry;

	p->sender_high = lb_connection_key(&p->key, &p->tuple, family);
	entry = ct_find(&p->key, is_tcp(p), family);
	if (!entry || (__s32)(entry->lifetime - now) < 0)
		return NULL;
	/* an id changes with the scope that is asked, and with the service: streams live through it */
	if (unlikely_(entry->rev_nat != p->found.rev_nat)) {
		if (!is_tcp(p) || ct_opens(p))
			return NULL;
		entry->rev_nat = p->found.rev_nat;
	}
	backend = lb_backend_of(entry->backend);
	if (!backend || lb_begins_anew(p, entry, backend))
		return NULL;
	p->lb_backend = entry->backend;
	lb_connection_update(p, entry, false, now);
	return backend;
}

/* Write down who was chosen: p->lb_backend, under the key that lb_connected() has left. */
static __always_inline int lb_connect(struct packet *p, __u32 now, const __u8 family)
{
	struct scratch *room = scratch();
	struct ct_entry *entry;

	if (!room)
		return CONNTRACK_DROP(DROP_CT_MAP_INSERTION_FAILED);
	entry = &room->entry;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->flags = ct_flags_after(p->sender_high ? CT_INITIATOR_HIGH : 0, p, false);
	entry->lifetime = now + lb_connection_lifetime(is_tcp(p), entry->flags);
	entry->rev_nat = p->found.rev_nat;
	entry->backend = p->lb_backend;
	entry->src_identity = p->src_identity;
	if (map_update(ct_map_of(is_tcp(p), family), &p->key, entry, BPF_ANY))
		return CONNTRACK_DROP(DROP_CT_MAP_INSERTION_FAILED);
	/*
	 * Where the table is full of what is in use, the kernel takes back first what nobody has looked
	 * up. Without this entry a stream would go on at another backend, which resets it.
	 */
	if (is_tcp(p))
		ct_find(&p->key, true, family);
	return 0;
}

/* The backend ends the connection: `p` is its answer, with the frontend's address already. */
static __always_inline void lb_connection_closes(const struct packet *p, const __u8 family)
{
	union ct_key key = {};
	struct ct_entry *entry;

	lb_connection_key(&key, &p->tuple, family);
	entry = ct_find(&key, true, family);
	if (entry)
		lb_connection_update(p, entry, true, now_seconds());
}

#endif
