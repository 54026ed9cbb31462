/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Policy: may this identity speak with that endpoint on this protocol and port?
 *
 * Two look-ups in the endpoint's own LPM map, for the exact identity and for any; the entry of
 * higher precedence wins, then the one with the longer protocol and port prefix, then the one that
 * names the identity.
 */
#ifndef CILIUM_POLICY_H
#define CILIUM_POLICY_H

#include "conntrack.h"
#include "endpoints.h"
#include "host_firewall.h"
#include "proxy.h"

#define POLICY_DROP(reason) DROP_AT(FILE_POLICY, reason)

static __always_inline __u8 policy_match_of(const struct policy_entry *entry, bool exact)
{
	if (entry->prefixlen == 0)
		return exact ? MATCH_L3_ONLY : MATCH_ALL;
	if (entry->prefixlen <= 8)
		return exact ? MATCH_L3_PROTO : MATCH_PROTO_ONLY;
	return exact ? MATCH_L3_L4 : MATCH_L4_ONLY;
}

static __always_inline bool policy_outranks(const struct policy_entry *any,
					    const struct policy_entry *exact)
{
	if (any->precedence != exact->precedence)
		return any->precedence > exact->precedence;
	return any->prefixlen > exact->prefixlen;
}

/*
 * The port field of a policy key: destination port of the request, or the type of an ICMP message.
 * Of a reply it is that of the request it answers, which for ICMP differs by a constant.
 */
static __always_inline __u16 policy_port(const struct packet *p, bool reply)
{
	switch (p->tuple.proto) {
	case IPPROTO_ICMP:
		if (reply && p->icmp_type == ICMP_ECHOREPLY)
			return bpf_htons(ICMP_ECHO);
		return bpf_htons(reply ? p->icmp_type - 1 : p->icmp_type);
	case IPPROTO_ICMPV6:
		return bpf_htons(reply ? p->icmp_type - 1 : p->icmp_type);
	}
	return reply ? p->tuple.sport : p->tuple.dport;
}

/* Through the proxy or not at all. */
static __always_inline int policy_redirect(struct packet *p, const struct policy_entry *entry)
{
	p->judged.audited = false;
	if (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP)
		return POLICY_DROP(DROP_PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL);
	if (!entry->proxy_port || !proxies_on())
		return POLICY_DROP(DROP_SOCKET_LOOKUP_FAILED);
	p->judged.proxy_port = entry->proxy_port;
	return 0;
}

/*
 * What the winning entry says. A denial that is audited leaves the redirect of those that it
 * outranks in force, and is told; whether the proxy is there is no matter of audit.
 */
static __always_inline int policy_decide(struct packet *p, const struct policy_entry *entry,
					 bool exact, bool audit)
{
	int verdict = 0;

	p->judged.cookie = entry->cookie;
	p->judged.match = policy_match_of(entry, exact);
	p->judged.audited = audit || entry->flags & POLICY_AUDIT;
	if (entry->flags & POLICY_DENY) {
		verdict = POLICY_DROP(DROP_POLICY_DENY);
		/* nobody's rule, but who closes the direction: its cookie says */
		if (!(entry->precedence & 0xff)) {
			p->judged.match = MATCH_NONE;
			verdict = POLICY_DROP(DROP_POLICY_DENIED);
		}
	}
	if (entry->flags & POLICY_REDIRECT && (!verdict || p->judged.audited)) {
		int redirect;
		bool audited = verdict;

		redirect = policy_redirect(p, entry);
		if (redirect)
			return redirect;
		p->judged.audited = audited;
	}
	return verdict;
}

/*
 * The verdict of one endpoint in one direction: 0 or a drop. It is told when it denies, when it
 * would have but for audit mode, and when the connection is new; the packets of an answer are not
 * what the rules speak of, and tell nothing.
 */
static __always_inline int policy_check(struct __sk_buff *skb, struct packet *p,
					const struct side *endpoint, __u32 peer,
					const __u8 direction, const __u8 family)
{
	const __u16 enforced = direction == DIR_INGRESS ? ENDPOINT_ENFORCE_INGRESS :
							  ENDPOINT_ENFORCE_EGRESS;
	struct policy_key key = {
		.prefixlen = POLICY_FULL_BITS,
		.identity = peer,
		.direction = direction,
		.proto = p->tuple.proto,
		.port = p->port,
	};
	const struct policy_entry *exact, *any;
	__u32 id = endpoint->id;
	int verdict;
	bool audit;
	void *rules;

	p->judged.proxy_port = 0;
	if (!(endpoint->flags & enforced) || p->flags & PACKET_PATH_MTU)
		return 0;
	if (unlikely_(endpoint->flags & ENDPOINT_HOST) && exempt(p, direction, family))
		return 0;
	rules = map_lookup(map_of(POLICY), &id);
	if (!rules)
		return POLICY_DROP(endpoint->flags & ENDPOINT_HOST ? DROP_HOST_NOT_READY :
								     DROP_EP_NOT_READY);
	exact = bpf_map_lookup_elem(rules, &key);
	key.identity = 0;
	any = bpf_map_lookup_elem(rules, &key);

	audit = endpoint->flags & ENDPOINT_AUDIT || config_of()->flags & CONFIG_AUDIT;
	if (any && (!exact || policy_outranks(any, exact))) {
		verdict = policy_decide(p, any, false, audit);
	} else if (exact) {
		verdict = policy_decide(p, exact, true, audit);
	} else {
		verdict = POLICY_DROP(DROP_POLICY_DENIED);
		p->judged.cookie = 0;
		p->judged.match = MATCH_NONE;
		p->judged.audited = audit;
	}
	verdict = forget(p, verdict);
	if (!verdict)
		p->judged.audited = false;
	else if (p->judged.audited)
		verdict = 0;
	if (unlikely_(is_dry_run(p))) {
		note_answer(p, direction, verdict);
		return verdict;
	}
	if (p->seen.reason != REASON_REPLY &&
	    (verdict || p->judged.audited || p->seen.reason == REASON_NEW))
		report_verdict(skb, p, direction, verdict, family);
	return verdict;
}

#endif
