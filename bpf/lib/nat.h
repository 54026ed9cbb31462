/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Masquerade: what pods send to the world leaves with the node's address.
 *
 * A mapping is two entries made together, original to translated and back. The source port is kept
 * when it lies in the range for translations and nobody has it for that peer (another pod, or a
 * socket of the node itself); otherwise the next free one is taken. For ICMP echo the identifier is
 * the port. SCTP's checksum covers ports and is not ours to redo, so SCTP goes with its port or not
 * at all.
 */
#ifndef CILIUM_NAT_H
#define CILIUM_NAT_H

#include "endpoints.h"
#include "events.h"
#include "rewrite.h"
#include "sockets.h"

#define NAT_DROP(reason) DROP_AT(FILE_NAT, reason)
#define NAT_TRIES        32

union nat_key {
	struct nat_key4 v4;
	struct nat_key6 v6;
};

/* One form for both entry types: their fields are read and written through these. */
struct mapping {
	union address address;
	__u16 port;    /* be */
	__u16 rev_nat; /* frontend that was asked, 0 is none */
};

static __always_inline void nat_key_of(union nat_key *key, const struct tuple *t,
				       const __u8 direction, const __u8 family)
{
	if (family == FAMILY_IPV4) {
		key->v4.saddr = t->saddr.v4;
		key->v4.daddr = t->daddr.v4;
		key->v4.sport = t->sport;
		key->v4.dport = t->dport;
		key->v4.proto = t->proto;
		key->v4.direction = direction;
		key->v4.pad = 0;
		return;
	}
	__builtin_memcpy(key->v6.saddr, &t->saddr, 16);
	__builtin_memcpy(key->v6.daddr, &t->daddr, 16);
	key->v6.sport = t->sport;
	key->v6.dport = t->dport;
	key->v6.proto = t->proto;
	key->v6.direction = direction;
	key->v6.pad = 0;
}

static __always_inline bool nat_find(const struct tuple *t, const __u8 direction,
				     struct mapping *found, const __u8 family)
{
	union nat_key key = {};

	nat_key_of(&key, t, direction, family);
	if (family == FAMILY_IPV4) {
		const struct nat_entry4 *entry = map_lookup(map_of(SNAT4), &key);

		if (!entry)
			return false;
		found->address.v4 = entry->addr;
		found->port = entry->port;
		found->rev_nat = entry->rev_nat;
		return true;
	}

	const struct nat_entry6 *entry = map_lookup(map_of(SNAT6), &key);

	if (!entry)
		return false;
	__builtin_memcpy(&found->address, entry->addr, 16);
	found->port = entry->port;
	found->rev_nat = entry->rev_nat;
	return true;
}

/* Make an entry; `flags` are those of the update of a map. */
static __always_inline bool nat_write(const struct tuple *t, const __u8 direction,
				      const union address *address, __u16 port, __u16 rev_nat,
				      const __u64 flags, const __u8 family)
{
	union nat_key key = {};

	nat_key_of(&key, t, direction, family);
	if (family == FAMILY_IPV4) {
		struct nat_entry4 entry = {
			.created_ns = bpf_ktime_get_coarse_ns(),
			.addr = address->v4,
			.port = port,
			.rev_nat = rev_nat,
		};

		return !map_update(map_of(SNAT4), &key, &entry, flags);
	}

	struct nat_entry6 entry = {
		.created_ns = bpf_ktime_get_coarse_ns(),
		.port = port,
		.rev_nat = rev_nat,
	};

	__builtin_memcpy(entry.addr, address, 16);
	return !map_update(map_of(SNAT6), &key, &entry, flags);
}

/* Make an entry where there is none. */
static __always_inline bool nat_insert(const struct tuple *t, const __u8 direction,
				       const union address *address, __u16 port, __u16 rev_nat,
				       const __u8 family)
{
	return nat_write(t, direction, address, port, rev_nat, BPF_NOEXIST, family);
}

static __always_inline void nat_remove(const struct tuple *t, const __u8 direction,
				       const __u8 family)
{
	union nat_key key = {};

	nat_key_of(&key, t, direction, family);
	map_delete(family == FAMILY_IPV4 ? map_of(SNAT4) : map_of(SNAT6), &key);
}

static __always_inline void masquerade_address(union address *address, const __u8 family)
{
	const struct config *config = config_of();

	*address = (union address){};
	if (family == FAMILY_IPV4)
		address->v4 = config->masquerade_ipv4;
	else
		__builtin_memcpy(address, config->masquerade_ipv6, 16);
}

static __always_inline bool masquerade_on(const __u8 family)
{
	return config_of()->flags &
	       (family == FAMILY_IPV4 ? CONFIG_MASQUERADE_IPV4 : CONFIG_MASQUERADE_IPV6);
}

static __always_inline bool in_nat_range(__u16 port)
{
	const struct config *config = config_of();
	__u16 number = bpf_ntohs(port);

	return number >= config->nat_port_min && number <= config->nat_port_max;
}

/* The same ends the other way around. */
static __always_inline void reversed(struct tuple *back, const struct tuple *t)
{
	back->saddr = t->daddr;
	back->daddr = t->saddr;
	back->sport = t->dport;
	back->dport = t->sport;
	back->proto = t->proto;
}

/* The tuple of an answer to a packet that was translated to `to`. */
static __always_inline void answer_of(struct tuple *back, const struct tuple *t,
				      const struct mapping *to)
{
	back->saddr = t->daddr;
	back->daddr = to->address;
	back->sport = t->dport;
	back->dport = to->port;
	back->proto = t->proto;
}

/*
 * Find a port for a new connection and write both entries. `t` is what is translated, `sent` the same
 * with the destination that the packet leaves for; `to` holds the source address that it gets.
 */
static __always_inline int nat_allocate(struct __sk_buff *skb, const struct tuple *t,
					const struct tuple *sent, struct mapping *to, __u16 rev_nat,
					const __u8 family)
{
	const struct config *config = config_of();
	__u32 first = config->nat_port_min;
	__u32 size = (__u32)config->nat_port_max - first + 1;
	bool keep = t->proto == IPPROTO_SCTP || in_nat_range(t->sport);
	struct mapping owner = {};
	struct tuple back = {};
	bool taken = false;
	__u32 candidate;
	int i;

	if (config->nat_port_max < config->nat_port_min)
		return NAT_DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	if (keep) {
		/* a full table may have let go one half: the other keeps the port that the peer knows */
		to->port = t->sport;
		answer_of(&back, sent, to);
		if (nat_find(&back, NAT_IN, &owner, family) &&
		    same_address(&owner.address, &t->saddr, family) && owner.port == t->sport &&
		    owner.rev_nat == rev_nat &&
		    nat_insert(t, NAT_OUT, &to->address, to->port, rev_nat, family))
			return 0;
	}
	candidate = bpf_get_prandom_u32() % size;
	/* not unrolled: see parse.h */
#pragma clang loop unroll(disable)
	for (i = 0; i < NAT_TRIES; i++) {
		if (i == 0 && keep)
			to->port = t->sport;
		else
			to->port = bpf_htons(first + candidate);
		if (++candidate >= size)
			candidate = 0;
		answer_of(&back, sent, to);
		/* an original of the node itself already owns its socket */
		if ((same_address(&t->saddr, &to->address, family) ||
		     !node_takes(skb, &back, family)) &&
		    nat_insert(&back, NAT_IN, &t->saddr, t->sport, rev_nat, family)) {
			taken = true;
			break;
		}
		if (t->proto == IPPROTO_SCTP)
			return NAT_DROP(DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE);
	}
	if (!taken)
		return NAT_DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	if (nat_insert(t, NAT_OUT, &to->address, to->port, rev_nat, family))
		return 0;
	/* another processor was faster with the same connection: its mapping counts */
	nat_remove(&back, NAT_IN, family);
	if (!nat_find(t, NAT_OUT, to, family))
		return NAT_DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	return 0;
}

/* The mapping of an outgoing packet, made when it is the first, mended when half of it is lost. */
static __always_inline int nat_mapping_of(struct __sk_buff *skb, const struct tuple *t,
					  const struct tuple *sent, const union address *mine,
					  struct mapping *to, __u16 rev_nat, const __u8 family)
{
	struct mapping original = {};
	struct tuple back = {};

	if (nat_find(t, NAT_OUT, to, family)) {
		answer_of(&back, sent, to);
		if (!same_address(&to->address, mine, family)) {
			/* the node has another address now, or the way is another */
		} else if (nat_find(&back, NAT_IN, &original, family)) {
			if (same_address(&original.address, &t->saddr, family) &&
			    original.port == t->sport && original.rev_nat == rev_nat)
				return 0;
		} else if (nat_insert(&back, NAT_IN, &t->saddr, t->sport, rev_nat, family)) {
			return 0;
		}
		/* the port has gone to somebody else in between */
		nat_remove(t, NAT_OUT, family);
	}
	to->address = *mine;
	return nat_allocate(skb, t, sent, to, rev_nat, family);
}

/* An error that a pod sends about a translated packet: it must quote what the peer knows. */
static __always_inline int masquerade_error(struct __sk_buff *skb, struct packet *p,
					    const __u8 family)
{
	struct tuple original = {};
	struct mapping to = {};
	struct quoted q = {};

	if (!quote(skb, p, &q, family))
		/* quoted by the one who got the packet: its destination is who sends the error */
		return NAT_DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	reversed(&original, &q.tuple);
	if (!nat_find(&original, NAT_OUT, &to, family))
		return NAT_DROP(DROP_NO_MAPPING_FOR_NAT_MASQUERADE);
	if (rewrite_quoted(skb, p, &q, false, &to.address, to.port, family) ||
	    rewrite_address(skb, p, true, &to.address, family))
		return NAT_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* Give an outgoing packet the node's address. */
static __always_inline int masquerade(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	union address mine = {};
	struct mapping to = {};
	int verdict;

	if (unlikely_(p->flags & PACKET_ICMP_ERROR))
		return masquerade_error(skb, p, family);
	/* of ICMP only requests start something that can be answered */
	if ((p->tuple.proto == IPPROTO_ICMP && p->icmp_type != ICMP_ECHO &&
	     p->icmp_type != ICMP_TIMESTAMP) ||
	    (p->tuple.proto == IPPROTO_ICMPV6 && p->icmp_type != ICMPV6_ECHO_REQUEST))
		return NAT_DROP(DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE);
	masquerade_address(&mine, family);
	verdict = nat_mapping_of(skb, &p->tuple, &p->tuple, &mine, &to, 0, family);
	if (verdict)
		return verdict;
	if (rewrite_port(skb, p, true, to.port, family) ||
	    rewrite_address(skb, p, true, &to.address, family))
		return NAT_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 0;
}

/* Of restore(): the packet is an answer to a client of a service; nothing has been changed. */
#define RESTORE_CLIENT 2

/* Undo the translation inside an error about a packet we sent. 1 is done, 0 is not ours. */
static __always_inline int restore_error(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	struct mapping original = {};
	struct tuple back = {};
	struct quoted q = {};

	if (!quote(skb, p, &q, family))
		return 0;
	reversed(&back, &q.tuple);
	if (!nat_find(&back, NAT_IN, &original, family))
		return 0;
	if (original.rev_nat)
		return RESTORE_CLIENT;
	if (rewrite_quoted(skb, p, &q, true, &original.address, original.port, family) ||
	    rewrite_address(skb, p, false, &original.address, family))
		return NAT_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 1;
}

/*
 * Give an incoming packet its original destination back. 1 is done, 0 is nobody's translation, and
 * less than 0 a drop; see also RESTORE_CLIENT.
 */
static __always_inline int restore(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	struct mapping original = {}, to = {};
	struct tuple out = {};

	if (unlikely_(p->flags & PACKET_ICMP_ERROR))
		return restore_error(skb, p, family);
	if (p->tuple.proto != IPPROTO_SCTP && !in_nat_range(p->tuple.dport))
		return 0;
	if (!nat_find(&p->tuple, NAT_IN, &original, family))
		return 0;
	if (original.rev_nat)
		return RESTORE_CLIENT;
	out.saddr = original.address;
	out.daddr = p->tuple.saddr;
	out.sport = original.port;
	out.dport = p->tuple.sport;
	out.proto = p->tuple.proto;
	if (!nat_find(&out, NAT_OUT, &to, family))
		nat_insert(&out, NAT_OUT, &p->tuple.daddr, p->tuple.dport, 0, family);
	if (rewrite_port(skb, p, false, original.port, family) ||
	    rewrite_address(skb, p, false, &original.address, family))
		return NAT_DROP(DROP_ERROR_WRITING_TO_PACKET);
	return 1;
}

/* Who must be asked with the node's address: whoever does not know the way to our pods. */
static __always_inline bool wants_masquerade(const struct packet *p, const __u8 family)
{
	const struct ipcache_info *info = ipcache_of(&p->tuple.daddr, family);
	__u32 identity = identity_or_world(info);

	if (!masquerade_on(family) || is_cluster_identity(identity) || identity == ID_HOST)
		return false;
	if (has_tunnel(info))
		return false;
	return is_unicast(&p->tuple.daddr, family);
}

/* A process of the node whose port a translated connection has taken is translated too. */
static __always_inline bool node_collides(const struct packet *p, const __u8 family)
{
	union address mine = {};
	struct mapping owner = {};
	struct tuple back = {};

	if (!masquerade_on(family) || p->flags & PACKET_ICMP_ERROR || !in_nat_range(p->tuple.sport))
		return false;
	masquerade_address(&mine, family);
	if (!same_address(&p->tuple.saddr, &mine, family))
		return false;
	reversed(&back, &p->tuple);
	return nat_find(&back, NAT_IN, &owner, family) &&
	       (!same_address(&owner.address, &mine, family) || owner.port != p->tuple.sport);
}

#endif
