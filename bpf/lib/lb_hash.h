/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The hash that leads into Maglev tables: Jenkins' jhash2, as in the kernel's linux/jhash.h, over the
 * words of the packet as they lie in memory. All nodes compute it alike, and Python does too.
 *
 * Words are little-endian numbers of the bytes on the wire: source address (one word or four),
 * destination address, and the ports (source in the low half). The initial value is the seed of the
 * configuration plus the protocol.
 */
#ifndef CILIUM_LB_HASH_H
#define CILIUM_LB_HASH_H

#include "packet.h"

#define HASH_INIT 0xdeadbeef

#define rotated(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))

struct hashed {
	__u32 a, b, c;
};

static __always_inline void hash_mix(struct hashed *h)
{
	h->a -= h->c;
	h->a ^= rotated(h->c, 4);
	h->c += h->b;
	h->b -= h->a;
	h->b ^= rotated(h->a, 6);
	h->a += h->c;
	h->c -= h->b;
	h->c ^= rotated(h->b, 8);
	h->b += h->a;
	h->a -= h->c;
	h->a ^= rotated(h->c, 16);
	h->c += h->b;
	h->b -= h->a;
	h->b ^= rotated(h->a, 19);
	h->a += h->c;
	h->c -= h->b;
	h->c ^= rotated(h->b, 4);
	h->b += h->a;
}

static __always_inline __u32 hash_final(struct hashed *h)
{
	h->c ^= h->b;
	h->c -= rotated(h->b, 14);
	h->a ^= h->c;
	h->a -= rotated(h->c, 11);
	h->b ^= h->a;
	h->b -= rotated(h->a, 25);
	h->c ^= h->b;
	h->c -= rotated(h->b, 16);
	h->a ^= h->c;
	h->a -= rotated(h->c, 4);
	h->b ^= h->a;
	h->b -= rotated(h->a, 14);
	h->c ^= h->b;
	h->c -= rotated(h->b, 24);
	return h->c;
}

/* `sport` is the source port (be), or 0 where all connections of a client shall be one. */
static __always_inline __u32 lb_hash(const struct tuple *t, __u16 sport, const __u8 family)
{
	const __u32 words = family == FAMILY_IPV4 ? 3 : 9;
	__u32 start = HASH_INIT + (words << 2) + config_of()->lb_hash_seed + t->proto;
	__u32 ports = sport | (__u32)t->dport << 16;
	struct hashed h = {start, start, start};

	if (family == FAMILY_IPV4) {
		h.a += t->saddr.v4;
		h.b += t->daddr.v4;
		h.c += ports;
		return hash_final(&h);
	}
	h.a += t->saddr.words[0];
	h.b += t->saddr.words[1];
	h.c += t->saddr.words[2];
	hash_mix(&h);
	h.a += t->saddr.words[3];
	h.b += t->daddr.words[0];
	h.c += t->daddr.words[1];
	hash_mix(&h);
	h.a += t->daddr.words[2];
	h.b += t->daddr.words[3];
	h.c += ports;
	return hash_final(&h);
}

#endif
