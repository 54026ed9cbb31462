// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Where lxc.c goes on with what a pod sends to a service: the destination becomes a backend, and the
 * packet goes back there to be judged and sent; or it is refused, or delivered to the very pod.
 */
#define SOURCE_FILE FILE_SERVICES

#include "lib/delivery.h"
#include "lib/lb_pods.h"
#include "lib/refusal.h"

/* Back to where packets are judged and sent. */
static __always_inline int go_on(struct __sk_buff *skb, const __u8 family)
{
	bpf_tail_call_(map_of(CALLS), skb,
		       family == FAMILY_IPV4 ? CALL_SEND_TRANSLATED_IPV4 :
					       CALL_SEND_TRANSLATED_IPV6);
	return DROP(DROP_MISSED_TAIL_CALL);
}

/* To a frontend, p->found. */
static __always_inline int send_to_service(struct __sk_buff *skb, struct packet *p,
					   const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	union address to = {};
	__u16 port = 0;
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	if (unlikely_(skips_redirect(p, pod)))
		return go_on(skb, family);
	verdict = forget(p, lb_serve(p, &to, &port, family));
	if (verdict < 0)
		return verdict;
	if (unlikely_(!verdict)) {
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_SERVICE_REFUSE_IPV4 :
						       CALL_SERVICE_REFUSE_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	verdict = forget(p, ask_backend(skb, p, &to, port, family));
	if (verdict)
		return verdict;
	if (unlikely_(same_address(&p->tuple.saddr, &to, family))) {
		bpf_tail_call_(map_of(CALLS), skb,
			       family == FAMILY_IPV4 ? CALL_HAIRPIN_ASK_IPV4 :
						       CALL_HAIRPIN_ASK_IPV6);
		return DROP(DROP_MISSED_TAIL_CALL);
	}
	return go_on(skb, family);
}

int tail_service_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, send_to_service(skb, p, FAMILY_IPV4), FAMILY_IPV4) :
		   TC_ACT_SHOT;
}

int tail_service_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, send_to_service(skb, p, FAMILY_IPV6), FAMILY_IPV6) :
		   TC_ACT_SHOT;
}

/* An error, which may be about an answer of a frontend. */
static __always_inline int send_service_error(struct __sk_buff *skb, struct packet *p,
					      const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	verdict = forget(p, error_to_backend(skb, p, family));
	if (verdict < 0)
		return verdict;
	if (verdict == ERROR_TO_ITSELF) {
		see(skb, p, REASON_RELATED, true);
		p->dst_identity = p->src_identity;
		return deliver_to_pod(skb, p, pod, family);
	}
	return go_on(skb, family);
}

int tail_service_error_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, send_service_error(skb, p, FAMILY_IPV4), FAMILY_IPV4) :
		   TC_ACT_SHOT;
}

int tail_service_error_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, send_service_error(skb, p, FAMILY_IPV6), FAMILY_IPV6) :
		   TC_ACT_SHOT;
}

/* The backend is the pod that asks. */
static __always_inline int ask_itself(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	if (is_dry_run(p))
		return DRY_RUN_PASSES;
	verdict = hairpin_ask(skb, p, pod, family);
	return verdict ? verdict : deliver_to_pod(skb, p, pod, family);
}

int tail_hairpin_ask_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, ask_itself(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_hairpin_ask_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, ask_itself(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

static __always_inline int answer_itself(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	int verdict;

	if (!pod)
		return DROP(DROP_EP_NOT_READY);
	verdict = hairpin_answer(skb, p, pod, family);
	return verdict ? verdict : deliver_to_pod(skb, p, pod, family);
}

int tail_hairpin_back_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, answer_itself(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_hairpin_back_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, answer_itself(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

/* Nobody serves. The drop is told, whether the pod gets an answer or not. */
static __always_inline int refuse_service(struct __sk_buff *skb, struct packet *p,
					  const __u8 family)
{
	const struct endpoint_info *pod = endpoint_of_device(skb->ifindex);
	int verdict = DROP(DROP_SERVICE_BACKEND_NOT_FOUND);

	if (!pod || is_dry_run(p) || !(config_of()->flags & CONFIG_LB_REJECT))
		return verdict;
	report_drop(skb, p, verdict, family);
	if (forget(p, make_refusal(skb, p, family)))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(pod->ifindex, 0);
}

int tail_service_refuse_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, refuse_service(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_service_refuse_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, refuse_service(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}
