/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The ring of events: memory that the programs write and readers have mapped.
 *
 * A record is built in its slot: no helper copies it, nobody is woken, and it costs the same whether
 * anybody reads or not. (A perf ring takes a quarter of a microsecond for each record, as much as
 * forwarding a packet.) The slot is taken by an atomic add, so that programs which interrupt each
 * other get slots of their own, and its sequence number goes in last, which is how a reader knows
 * that the record is whole.
 */
#ifndef CILIUM_RING_H
#define CILIUM_RING_H

#include "common.h"

/* An empty record of the given type, or NULL; `sequence` is for event_commit(). */
static __always_inline struct event *event_begin(const __u8 type, const __u8 subtype,
						 __u32 *sequence)
{
	__u32 cpu = bpf_get_smp_processor_id(), slot;
	struct event_head *head = map_lookup(map_of(EVENT_HEADS), &cpu);
	struct event *e;
	__u64 number;

	if (!head)
		return NULL;
	number = __sync_fetch_and_add(&head->written, 1);
	slot = cpu * EVENT_RING_SIZE + (number & (EVENT_RING_SIZE - 1));
	e = map_lookup(map_of(EVENTS), &slot);
	if (!e)
		return NULL;
	__builtin_memset(e, 0, sizeof(*e));
	e->type = type;
	e->subtype = subtype;
	*sequence = (__u32)number << 1 | 1;
	return e;
}

/*
 * The record is whole: stamp and release it. The precise clock, since the coarse one would give
 * thousands of flows one time. The exchange is the barrier that keeps the sequence number last.
 */
static __always_inline void event_commit(struct event *e, __u32 sequence)
{
	__sync_lock_test_and_set(&e->time_ns, bpf_ktime_get_ns());
	barrier();
	*(volatile __u32 *)&e->sequence = sequence;
}

#endif
