/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Questions to the node's stack: who of its sockets gets a packet?
 */
#ifndef CILIUM_SOCKETS_H
#define CILIUM_SOCKETS_H

#include "packet.h"

#define STATE_LISTEN 10

/* Fill in a tuple for the look-up of the socket that gets the packet. Returns its size. */
static __always_inline __u32 socket_tuple(struct bpf_sock_tuple *to, const struct tuple *t,
					  const __u8 family)
{
	if (family == FAMILY_IPV4) {
		to->ipv4.saddr = t->saddr.v4;
		to->ipv4.daddr = t->daddr.v4;
		to->ipv4.sport = t->sport;
		to->ipv4.dport = t->dport;
		return sizeof(to->ipv4);
	}
	__builtin_memcpy(to->ipv6.saddr, &t->saddr, 16);
	__builtin_memcpy(to->ipv6.daddr, &t->daddr, 16);
	to->ipv6.sport = t->sport;
	to->ipv6.dport = t->dport;
	return sizeof(to->ipv6);
}

/* Would any socket of the node get the packet? */
static __always_inline bool node_takes(struct __sk_buff *skb, const struct tuple *t,
				       const __u8 family)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size = socket_tuple(&tuple, t, family);

	if (t->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (t->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Does the node have the TCP connection of the packet, in whatever state? */
static __always_inline bool node_connected(struct __sk_buff *skb, const struct tuple *t,
					   const __u8 family)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool connected;
	__u32 size = socket_tuple(&tuple, t, family);

	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	connected = sk->state != STATE_LISTEN;
	bpf_sk_release(sk);
	return connected;
}

/* Does the node have a UDP socket with the very address that the packet goes to? */
static __always_inline bool node_bound(struct __sk_buff *skb, const struct tuple *t,
				       const __u8 family)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool bound;
	__u32 size = socket_tuple(&tuple, t, family);

	sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	if (family == FAMILY_IPV4)
		bound = sk->src_ip4 == t->daddr.v4;
	else
		bound = sk->src_ip6[0] == t->daddr.words[0] &&
			sk->src_ip6[1] == t->daddr.words[1] &&
			sk->src_ip6[2] == t->daddr.words[2] && sk->src_ip6[3] == t->daddr.words[3];
	bpf_sk_release(sk);
	return bound;
}

#endif
