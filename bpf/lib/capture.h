/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Whole packets for those who ask, see struct capture. A packet's bytes go
 * into the reader's ring straight from the packet; they need no room here.
 */
#ifndef CILIUM_CAPTURE_H
#define CILIUM_CAPTURE_H

#include "packet.h"

static __always_inline const struct capture *capture_of(void)
{
	return (const struct capture *)bpf_pseudo_fd(2, MAP_CAPTURE);
}

static __always_inline bool capture_fits(const union address *address, const __u32 *wanted,
					 const __u32 *mask, const __u8 family)
{
	if (family == FAMILY_IPV4)
		return (address->v4 & mask[0]) == wanted[0];
	return !(((address->words[0] & mask[0]) ^ wanted[0]) |
		 ((address->words[1] & mask[1]) ^ wanted[1]) |
		 ((address->words[2] & mask[2]) ^ wanted[2]) |
		 ((address->words[3] & mask[3]) ^ wanted[3]));
}

static __always_inline bool capture_wants(const struct capture_filter *f, const struct packet *p,
					  const __u8 family)
{
	const struct tuple *t = &p->tuple;

	return f->family == family && (!f->proto || f->proto == t->proto) &&
	       (!f->sport || f->sport == t->sport) && (!f->dport || f->dport == t->dport) &&
	       capture_fits(&t->saddr, f->saddr, f->smask, family) &&
	       capture_fits(&t->daddr, f->daddr, f->dmask, family);
}

static __always_inline void capture(struct __sk_buff *skb, const struct packet *p, __u8 point,
				    __u8 reason, const __u8 family)
{
	const struct capture *capture = capture_of();
	struct capture_record record = {};
	struct capture_losses *losses;
	__u64 now = bpf_ktime_get_ns();
	__u32 i, zero = 0;

	if (now > capture->until_ns || !(p->flags & PACKET_L3))
		return;
#pragma clang loop unroll(disable)
	for (i = 0; i < CAPTURE_FILTERS && i < capture->count; i++) {
		const struct capture_filter *f = &capture->filters[i];

		if (capture_wants(f, p, family))
			record.recordings |= 1U << (f->recording & 31);
	}
	if (!record.recordings)
		return;
	record.time_ns = now;
	record.length = skb->len;
	record.captured = skb->len < capture->snap_length ? skb->len : capture->snap_length;
	record.endpoint = p->endpoint;
	record.point = point;
	record.reason = reason;
	if (!bpf_perf_event_output(skb, (void *)map_of(CAPTURES),
				   BPF_F_CURRENT_CPU | (__u64)record.captured << 32, &record,
				   sizeof(record)))
		return;
	losses = map_lookup(map_of(CAPTURE_LOSSES), &zero);
	if (!losses)
		return;
	losses->packets++;
	losses->bytes += record.captured;
}

#endif
