/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What every program starts from: kernel headers, the shared structs, maps, calls, and the way a
 * function says "drop this packet".
 *
 * A function that decides a packet's fate returns a tc action (>= 0) or a drop (< 0). A drop carries
 * its reason and the place that decided it, packed in one integer, so that the counters can name
 * the line without every caller passing it on.
 */
#ifndef CILIUM_COMMON_H
#define CILIUM_COMMON_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/if_packet.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>

#undef CONFIG_AUDIT /* the kernel's build option, which BCC defines; abi.h has a flag of that name */
#include "abi.h"
#include "drop_reasons.h"
#include "calls.h"
#include "maps.h"

#define AF_INET  2
#define AF_INET6 10

/* A constant in network byte order; BCC's own is a function, of no use as a case label. */
#define be16(x) ((__u16)__builtin_bswap16(x))

#define likely_(x)   __builtin_expect(!!(x), 1)
#define unlikely_(x) __builtin_expect(!!(x), 0)

/*
 * Keep the compiler from knowing where a pointer came from: a check for NULL must be one of the
 * pointer itself, as the verifier (seen with Linux 6.18) does not follow the condition it stems from.
 */
#define opaque(pointer) asm volatile("" : "+r"(pointer))

/* What a tail call finds in skb->cb. */
enum control {
	CONTROL_IDENTITY = 0, /* of the sender, where the entry program knows it */
	CONTROL_PEER = 1,     /* be; node at the other end of the tunnel */
	CONTROL_OPTION = 2,   /* enum option_seen */
};

/* Was the packet looked at for the option of dsr.h? */
enum option_seen {
	OPTION_NOT_SOUGHT = 0,
	OPTION_NONE = 1,
	OPTION_TAKEN = 2,
};

/* Drop encoding: file, line and reason. */
#define DROP_AT(file, reason)   (-(int)(((file) << 20) | (__LINE__ << 8) | (reason)))
#define DROP(reason)            DROP_AT(SOURCE_FILE, reason)
#define drop_reason_of(verdict) ((__u8)(-(verdict)))
#define drop_line_of(verdict)   ((__u16)((-(verdict) >> 8) & 0xfff))
#define drop_file_of(verdict)   ((__u8)(-(verdict) >> 20))

static __always_inline void *map_lookup(__u64 map, const void *key)
{
	return bpf_map_lookup_elem_(map, (void *)key);
}

static __always_inline long map_update(__u64 map, const void *key, const void *value, __u64 flags)
{
	return bpf_map_update_elem_(map, (void *)key, (void *)value, flags);
}

static __always_inline long map_delete(__u64 map, const void *key)
{
	return bpf_map_delete_elem_(map, (void *)key);
}

/*
 * Room of this processor. The stack would not hold a connection beside a packet; and the verifier,
 * which follows every value on the stack, does not follow these, which keeps its work in bounds.
 * Programs do not interrupt each other on a processor, and none keeps anything here beyond its run.
 */
static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return map_lookup(map_of(SCRATCH), &zero);
}

/* A mark that carries an identity: low 16 bits on top, bits 16 to 23 in the low byte. */
static __always_inline __u32 mark_with(__u32 kind, __u32 identity)
{
	/* an identity of this node alone, such as that of a CIDR, is found by the address again */
	if (identity >> 24)
		return kind;
	return kind | (identity & 0xffff) << 16 | (identity >> 16 & 0xff);
}

static __always_inline __u32 mark_of_identity(__u32 identity)
{
	return mark_with(MARK_IDENTITY, identity);
}

static __always_inline __u32 identity_of_mark(__u32 mark)
{
	return mark >> 16 | (mark & 0xff) << 16;
}

/* Seconds of the coarse monotonic clock: the unit of connection lifetimes. */
static __always_inline __u32 now_seconds(void)
{
	return (__u32)(bpf_ktime_get_coarse_ns() / 1000000000ULL);
}

#endif
