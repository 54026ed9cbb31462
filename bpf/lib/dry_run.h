/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What would become of a packet? See enum dry_run: the attached programs themselves answer.
 */
#ifndef CILIUM_DRY_RUN_H
#define CILIUM_DRY_RUN_H

#include "packet.h"

/* In the place of a drop: the packet would go on. No drop has this reason. */
#define DRY_RUN_PASSES (-1)

static __always_inline bool is_dry_run(const struct packet *p)
{
	return p->origin == ORIGIN_DRY_RUN;
}

/* Who hands over what comes from a device. */
static __always_inline __u8 origin_on_wire(const struct __sk_buff *skb)
{
	return unlikely_(skb->mark == MARK_DRY_RUN) ? ORIGIN_DRY_RUN : ORIGIN_WIRE;
}

static __always_inline void note_answer(struct packet *p, const __u8 direction, int verdict)
{
	struct answer *answer = direction == DIR_INGRESS ? &p->ingress : &p->egress;

	answer->cookie = p->judged.cookie;
	answer->match = p->judged.match;
	if (verdict)
		answer->outcome = OUTCOME_DENIED;
	else if (p->judged.audited)
		answer->outcome = OUTCOME_AUDITED;
	else
		answer->outcome = p->judged.proxy_port ? OUTCOME_REDIRECTED : OUTCOME_ALLOWED;
}

static __always_inline int answer_dry_run(struct __sk_buff *skb, const struct packet *p,
					  int verdict)
{
	__u32 reason = verdict == DRY_RUN_PASSES ? bpf_ntohs(p->judged.proxy_port) :
						   drop_reason_of(verdict);

	skb->cb[DRY_RUN_OUTCOMES] = p->egress.outcome | p->ingress.outcome << 8 |
				    p->lb_backend << 16;
	skb->cb[DRY_RUN_EGRESS_COOKIE] = p->egress.cookie;
	skb->cb[DRY_RUN_INGRESS_COOKIE] = p->ingress.cookie;
	skb->cb[DRY_RUN_REASON] = reason;
	skb->cb[DRY_RUN_MATCHES] = p->egress.match | p->ingress.match << 8 |
				   (__u32)p->lb_rev_nat << 16;
	return TC_ACT_SHOT;
}

#endif
