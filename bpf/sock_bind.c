// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Sockets as they take a port and as they are closed: the ports that services have on the node's
 * addresses are not to be had by its processes, who would wait in vain there; and what was noted
 * of a socket goes with it.
 */
#define SOURCE_FILE FILE_SOCK

#include "lib/sock_lb.h"

#define EADDRINUSE_ 98

/* Does a service answer at the port, on this address or, as its NodePort, on all of the node? */
static __always_inline bool is_taken(const struct request *r, const __u8 family)
{
	const __u32 owners = LB_NODE_PORT | LB_EXTERNAL_IP | LB_LOAD_BALANCER;
	struct request at = *r;
	struct lb_found found;

	if (is_loopback(&at.address, family))
		at.address = (union address){};
	return lb_find_in(&at.address, at.port, at.proto, LB_EXTERNAL, &found, family) &&
	       found.flags & owners;
}

static __always_inline int post_bind(struct bpf_sock *ctx, struct request *r, const __u8 family)
{
	const union address any = {};

	r->port = bpf_htons((__u16)ctx->src_port);
	if (is_taken(r, family))
		goto taken;
	/* all addresses of an IPv6 socket are those of IPv4 too */
	if (family == FAMILY_IPV6 && is_unspecified(&r->address, family) &&
	    is_taken(r, FAMILY_IPV4))
		goto taken;
	return SOCK_ALLOW;
taken:
	bpf_set_retval(-EADDRINUSE_);
	return SOCK_REFUSE;
}

static __always_inline bool is_of_node(struct bpf_sock *ctx, struct request *r)
{
	__u32 proto = ctx->protocol;

	if (proto == IPPROTO_MPTCP_)
		proto = IPPROTO_TCP;
	r->proto = (__u8)proto;
	return (proto == IPPROTO_TCP || proto == IPPROTO_UDP) &&
	       bpf_get_netns_cookie(ctx) == config_of()->netns_cookie;
}

int cil_sock4_post_bind(struct bpf_sock *ctx)
{
	struct request r = {};

	if (!is_of_node(ctx, &r))
		return SOCK_ALLOW;
	r.address.v4 = ctx->src_ip4;
	return post_bind(ctx, &r, FAMILY_IPV4);
}

int cil_sock6_post_bind(struct bpf_sock *ctx)
{
	struct request r = {};

	if (!is_of_node(ctx, &r))
		return SOCK_ALLOW;
	r.address.words[0] = ctx->src_ip6[0];
	r.address.words[1] = ctx->src_ip6[1];
	r.address.words[2] = ctx->src_ip6[2];
	r.address.words[3] = ctx->src_ip6[3];
	if (!r.address.words[0] && !r.address.words[1] && r.address.words[2] == bpf_htonl(0xffff)) {
		r.address.v4 = r.address.words[3];
		r.address.words[2] = r.address.words[3] = 0;
		return post_bind(ctx, &r, FAMILY_IPV4);
	}
	return post_bind(ctx, &r, FAMILY_IPV6);
}

int cil_sock_release(struct bpf_sock *ctx)
{
	union address peer = {};
	__u16 port = ctx->dst_port;

	if (!port)
		return SOCK_ALLOW;
	if (ctx->family == AF_INET) {
		peer.v4 = ctx->dst_ip4;
		sock_forget(bpf_get_socket_cookie(ctx), &peer, port, FAMILY_IPV4);
		return SOCK_ALLOW;
	}
	if (ctx->family != AF_INET6)
		return SOCK_ALLOW;
	peer.words[0] = ctx->dst_ip6[0];
	peer.words[1] = ctx->dst_ip6[1];
	peer.words[2] = ctx->dst_ip6[2];
	peer.words[3] = ctx->dst_ip6[3];
	if (!peer.words[0] && !peer.words[1] && peer.words[2] == bpf_htonl(0xffff)) {
		peer.v4 = peer.words[3];
		peer.words[2] = peer.words[3] = 0;
		sock_forget(bpf_get_socket_cookie(ctx), &peer, port, FAMILY_IPV4);
		return SOCK_ALLOW;
	}
	sock_forget(bpf_get_socket_cookie(ctx), &peer, port, FAMILY_IPV6);
	return SOCK_ALLOW;
}
