/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Counters: packets and bytes by outcome, direction and place, one copy for each processor.
 */
#ifndef CILIUM_METRICS_H
#define CILIUM_METRICS_H

#include "common.h"

static __always_inline void count(__u8 reason, __u8 direction, __u8 file, __u16 line, __u32 bytes)
{
	struct metrics_key key = {
		.reason = reason,
		.direction = direction,
		.line = line,
		.file = file,
	};
	struct metrics_value *value = map_lookup(map_of(METRICS), &key);

	if (likely_(value)) {
		value->packets++;
		value->bytes += bytes;
		return;
	}

	struct metrics_value first = {.packets = 1, .bytes = bytes};

	/* on a full map the packet stays uncounted, which is all that goes wrong */
	map_update(map_of(METRICS), &key, &first, BPF_NOEXIST);
}

#define count_forward(skb, direction) \
	count(REASON_METRIC_FORWARDED, direction, SOURCE_FILE, __LINE__, (skb)->len)

#endif
