/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Services: which frontend is asked, and who of its backends serves. Look-ups and the choice only,
 * the same at sockets, in tc and in XDP; changing packets is each hook's own business.
 */
#ifndef CILIUM_LB_H
#define CILIUM_LB_H

#include "packet.h"

/*
 * May the address be one of a frontend? Most are not, and cost no look-up: a bit says so, which many
 * addresses share. Sixteen bits of a multiplicative hash name it.
 */
static __always_inline bool lb_may_serve(const union address *address, const __u8 family)
{
	const __u32 *w = address->words;
	__u32 sum = family == FAMILY_IPV4 ? address->v4 : w[0] ^ w[1] ^ w[2] ^ w[3];
	__u32 hash = sum * 0x9e3779b1U >> 16, word = hash >> 5;
	const __u32 *bits = map_lookup(map_of(LB_ADDRESSES), &word);

	return bits && *bits >> (hash & 31) & 1;
}

/* One frontend; the fields that belong together are read together. */
static __always_inline bool lb_find_in(const union address *address, __u16 port, __u8 proto,
				       __u8 scope, struct lb_found *found, const __u8 family)
{
	const struct lb_service *service;
	__u64 head;

	if (!lb_may_serve(address, family))
		return false;
	if (family == FAMILY_IPV4) {
		struct lb_key4 key = {
			.addr = address->v4,
			.port = port,
			.proto = proto,
			.scope = scope,
		};

		service = map_lookup(map_of(LB4_SERVICES), &key);
	} else {
		struct lb_key6 key = {.port = port, .proto = proto, .scope = scope};

		__builtin_memcpy(key.addr, address, 16);
		service = map_lookup(map_of(LB6_SERVICES), &key);
	}
	if (!service)
		return false;
	head = *(const volatile __u64 *)service;
	found->first = (__u32)head;
	found->count = (__u16)(head >> 32);
	found->rev_nat = (__u16)(head >> 48);
	found->flags = service->flags;
	found->affinity_timeout = service->affinity_timeout;
	return true;
}

/*
 * The frontend that is asked. `inside` says that a pod or a node asks, for whom a frontend may have
 * another set of backends. The entry of the address as a whole is found where no frontend is.
 */
static __always_inline bool lb_find(const union address *address, __u16 port, __u8 proto,
				    bool inside, struct lb_found *found, const __u8 family)
{
	if (!lb_find_in(address, port, proto, LB_EXTERNAL, found, family))
		return lb_find_in(address, 0, 0, LB_EXTERNAL, found, family);
	if (inside && found->flags & LB_TWO_SCOPES)
		return lb_find_in(address, port, proto, LB_INTERNAL, found, family);
	return true;
}

/* A backend by its id, NULL when there is none (any more). */
static __always_inline const struct lb_backend *lb_backend_of(__u32 id)
{
	const struct lb_backend *backend = map_lookup(map_of(LB_BACKENDS), &id);

	return backend && backend->state != LB_BACKEND_NONE ? backend : NULL;
}

static __always_inline __u32 lb_slot(const struct lb_found *found, __u32 number)
{
	__u32 index = found->first + number;
	const __u32 *id = map_lookup(map_of(LB_SLOTS), &index);

	return id ? *id : 0;
}

/* Whoever comes, evenly. 0 is nobody. */
static __always_inline __u32 lb_pick_random(const struct lb_found *found)
{
	return found->count ? lb_slot(found, bpf_get_prandom_u32() % found->count) : 0;
}

/* From the table all nodes have alike, by a hash all nodes compute alike. 0 is nobody. */
static __always_inline __u32 lb_pick_maglev(const struct lb_found *found, __u32 hash)
{
	__u32 table = found->rev_nat, index, size = config_of()->maglev_size;
	const __u32 *id;
	void *inner;

	if (!found->count || !size)
		return 0;
	inner = map_lookup(map_of(LB_MAGLEV), &table);
	if (!inner)
		return lb_pick_random(found);
	index = hash % size;
	id = bpf_map_lookup_elem_((__u64)inner, &index);
	return id ? *id : 0;
}

/* ---- session affinity ---- */

/*
 * Who served this client before, as far as it is not too long ago and still serves; `touch` says that
 * it is asked again now. 0 is nobody.
 */
static __always_inline __u32 lb_affine(const struct lb_affinity_key *client,
				       const struct lb_found *found, __u32 now, bool touch)
{
	struct lb_affinity *last = map_lookup(map_of(LB_AFFINITY), client);
	struct lb_member member = {.rev_nat = found->rev_nat};

	if (!last || now - last->last_used > found->affinity_timeout)
		return 0;
	member.backend = last->backend;
	if (!map_lookup(map_of(LB_MEMBERS), &member))
		return 0;
	if (touch)
		last->last_used = now;
	return last->backend;
}

static __always_inline void lb_remember(const struct lb_affinity_key *client, __u32 backend,
					__u32 now)
{
	struct lb_affinity served = {.last_used = now, .backend = backend};

	map_update(map_of(LB_AFFINITY), client, &served, BPF_ANY);
}

/* ---- source ranges ---- */

/* May this source ask the frontend? */
static __always_inline bool lb_source_allowed(const struct lb_found *found,
					      const union address *source, const __u8 family)
{
	bool listed;

	if (likely_(!(found->flags & LB_SOURCE_RANGE)))
		return true;
	if (family == FAMILY_IPV4) {
		struct lb_range_key4 key = {
			.prefixlen = LB_RANGE_STATIC_BITS + 32,
			.rev_nat = found->rev_nat,
			.addr = source->v4,
		};

		listed = map_lookup(map_of(LB4_RANGES), &key);
	} else {
		struct lb_range_key6 key = {
			.prefixlen = LB_RANGE_STATIC_BITS + 128,
			.rev_nat = found->rev_nat,
		};

		__builtin_memcpy(key.addr, source, 16);
		listed = map_lookup(map_of(LB6_RANGES), &key);
	}
	return found->flags & LB_SOURCE_RANGE_DENY ? !listed : listed;
}

#endif
