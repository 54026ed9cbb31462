// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Where the other programs go on for packets of proxies: up the stack to the proxy's socket, out of
 * the node for what a proxy sends.
 *
 * A listener is chosen here, on ingress. Segments of connections that exist find their socket by
 * themselves, as the mark routes them to the node whatever address they carry.
 */
#define SOURCE_FILE FILE_PROXY

#include "lib/delivery.h"
#include "lib/proxy.h"
#include "lib/sockets.h"

/* Hand the packet to the proxy that listens on the loopback address. */
static __always_inline int assign(struct __sk_buff *skb, const struct packet *p, const __u8 family)
{
	struct bpf_sock_tuple t = {};
	struct tuple to = p->tuple;
	bool listens = true;
	struct bpf_sock *sk;
	__u32 size;
	long failed;

	to.daddr = (union address){};
	if (family == FAMILY_IPV4)
		to.daddr.v4 = bpf_htonl(INADDR_LOOPBACK);
	else
		to.daddr.words[3] = bpf_htonl(1);
	to.dport = p->proxy_port;
	size = socket_tuple(&t, &to, family);
	if (p->tuple.proto == IPPROTO_TCP) {
		sk = bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return PROXY_DROP(DROP_SOCKET_LOOKUP_FAILED);
		/* read here: the verifier takes one kind of socket for one load */
		listens = sk->state == STATE_LISTEN;
	} else {
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return PROXY_DROP(DROP_SOCKET_LOOKUP_FAILED);
	}
	failed = listens ? bpf_sk_assign(skb, sk, 0) : -1;
	bpf_sk_release(sk);
	return failed ? PROXY_DROP(DROP_SOCKET_ASSIGN_FAILED) : 0;
}

static __always_inline int choose_socket(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	/* put together again, a datagram has lost the socket that was chosen for its pieces */
	if (p->flags & PACKET_FRAGMENT)
		return PROXY_DROP(DROP_IP_FRAGMENTATION_NOT_SUPPORTED);
	/* a repeated SYN, or the first after a connection that the proxy has closed */
	if (p->tuple.proto == IPPROTO_TCP && !(p->flags & PACKET_TO_LISTENER) &&
	    node_connected(skb, &p->tuple, family))
		return 0;
	return assign(skb, p, family);
}

static __always_inline int up_to_proxy(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	int verdict;

	if (for_listener(p)) {
		verdict = choose_socket(skb, p, family);
		if (verdict)
			return verdict;
	}
	/* the frame was addressed to the pod, or to its gateway on another node */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	trace_to_proxy(skb, p, family);
	skb->mark = mark_to_proxy(p);
	return TC_ACT_OK;
}

int tail_to_proxy_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, up_to_proxy(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_to_proxy_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();

	return p ? conclude(skb, p, up_to_proxy(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}

/* Bounced off an egress hook, for a listener: judged and reported there. */
static __always_inline int to_host(struct __sk_buff *skb, struct packet *p, const __u8 family)
{
	const struct endpoint_info *local;
	int verdict = parse(skb, p, family);

	if (verdict < 0)
		return verdict;
	p->src_identity = identity_of_address(&p->tuple.saddr, family);
	local = endpoint_of_address(&p->tuple.daddr, family);
	if (local) {
		p->endpoint = local->id;
		p->dst_identity = local->identity;
	}
	p->proxy_port = skb->mark >> 16;
	/* whether it opens or cuts a connection is told by its flags: only a cut one has no SYN */
	if (!ct_opens(p))
		p->flags |= PACKET_TO_LISTENER;
	verdict = choose_socket(skb, p, family);
	return verdict ? verdict : TC_ACT_OK;
}

int tail_to_host_ipv4(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, to_host(skb, p, FAMILY_IPV4), FAMILY_IPV4) : TC_ACT_SHOT;
}

int tail_to_host_ipv6(struct __sk_buff *skb)
{
	struct packet *p = packet_begin(DIR_INGRESS);

	return p ? conclude(skb, p, to_host(skb, p, FAMILY_IPV6), FAMILY_IPV6) : TC_ACT_SHOT;
}
