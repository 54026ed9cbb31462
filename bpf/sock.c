// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Services where processes ask for them: an address of a service becomes that of a backend when a
 * socket connects or sends a datagram, once, and no packet needs to be changed. What a process is
 * told of its peer becomes the address of the service again.
 *
 * An IPv6 socket may speak IPv4 through mapped addresses (::ffff:0:0/96), which are looked up as
 * the IPv4 addresses they are.
 */
#define SOURCE_FILE FILE_SOCK

#include "lib/sock_lb.h"

#define EHOSTUNREACH_ 113
#define ENOMEM_       12

/* How the address is written in the socket call. */
enum form {
	FORM_IPV4 = 0,
	FORM_IPV6 = 1,
	FORM_MAPPED = 2, /* IPv4 at an IPv6 socket */
};

#define family_of(form) ((form) == FORM_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4)

static __always_inline bool is_mapped(const struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline void read_address(const struct bpf_sock_addr *ctx, union address *to,
					 const __u8 form)
{
	__builtin_memset(to, 0, sizeof(*to));
	if (form == FORM_IPV4) {
		to->v4 = ctx->user_ip4;
	} else if (form == FORM_MAPPED) {
		to->v4 = ctx->user_ip6[3];
	} else {
		to->words[0] = ctx->user_ip6[0];
		to->words[1] = ctx->user_ip6[1];
		to->words[2] = ctx->user_ip6[2];
		to->words[3] = ctx->user_ip6[3];
	}
}

static __always_inline void write_address(struct bpf_sock_addr *ctx, const union address *from,
					  __u16 port, const __u8 form)
{
	if (form == FORM_IPV4) {
		ctx->user_ip4 = from->v4;
	} else if (form == FORM_MAPPED) {
		ctx->user_ip6[3] = from->v4;
	} else {
		ctx->user_ip6[0] = from->words[0];
		ctx->user_ip6[1] = from->words[1];
		ctx->user_ip6[2] = from->words[2];
		ctx->user_ip6[3] = from->words[3];
	}
	ctx->user_port = port;
}

/* Is it a socket that services are for? Fills in what does not cost a look-up. */
static __always_inline bool begin(struct bpf_sock_addr *ctx, struct request *r, const __u8 form)
{
	const struct config *config = config_of();
	__u32 proto = ctx->protocol;

	if (proto == IPPROTO_MPTCP_)
		proto = IPPROTO_TCP;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return false;
	read_address(ctx, &r->address, form);
	r->port = (__u16)ctx->user_port;
	r->proto = (__u8)proto;
	r->netns = bpf_get_netns_cookie(ctx);
	r->node = r->netns == config->netns_cookie;
	if (config->flags & CONFIG_LB_SOCKET_HOST && !r->node)
		return false;
	r->cookie = bpf_get_socket_cookie(ctx);
	return true;
}

/*
 * Nobody serves. Where silence is wanted, a pod's packets meet it in tc; the node's own never get
 * there, and an address of a service is nobody's beyond the node.
 */
static __always_inline int refuse_socket(const struct request *r, __u8 metric, __u16 line,
					 const __u8 family)
{
	struct event *e;
	__u32 sequence;

	if (!(config_of()->flags & CONFIG_LB_REJECT) && !r->node)
		return SOCK_ALLOW;
	count(metric, DIR_SERVICE, SOURCE_FILE, line, 0);
	count(DROP_SERVICE_BACKEND_NOT_FOUND, DIR_EGRESS, SOURCE_FILE, line, 0);
	if (config_of()->flags & CONFIG_DROPS) {
		e = event_begin(EVENT_DROP, DROP_SERVICE_BACKEND_NOT_FOUND, &sequence);
		if (e) {
			event_of_socket(e, r, &r->address, r->port, family);
			__builtin_memset(e->orig_saddr, 0, sizeof(e->orig_saddr));
			e->flags |= EVENT_EGRESS;
			e->line = line;
			e->file = SOURCE_FILE;
			event_commit(e, sequence);
		}
	}
	bpf_set_retval(-EHOSTUNREACH_);
	return SOCK_REFUSE;
}

/* connect(), or a datagram with an address of its own. */
static __always_inline int forward(struct bpf_sock_addr *ctx, const bool connecting,
				   const __u8 form)
{
	const __u8 family = family_of(form);
	const struct lb_backend *backend;
	struct request r = {};
	struct lb_found found;
	union address to;
	bool traced;
	__u16 port;
	__u32 id;

	if (!begin(ctx, &r, form))
		return SOCK_ALLOW;
	/* which the kernel takes for the loopback address */
	if (unlikely_(is_unspecified(&r.address, family))) {
		if (family == FAMILY_IPV4)
			r.address.v4 = bpf_htonl(INADDR_LOOPBACK);
		else
			r.address.words[3] = bpf_htonl(1);
	}
	if (!sock_find(&r, &found, family) || is_foreign(&r, &found, family) ||
	    is_exempt(&r, &found)) {
		/* the peer is the one asked for now, whatever it stood for before */
		if (connecting && r.proto == IPPROTO_UDP)
			sock_forget(r.cookie, &r.address, r.port, family);
		return SOCK_ALLOW;
	}
	traced = sock_tracing(connecting ? AGGREGATE_MAX + 1 : AGGREGATE_MEDIUM);
	if (traced)
		trace_socket(&r, XLATE_PRE_FORWARD, &r.address, r.port, family);
	if (found.flags & LB_WILDCARD || !found.count)
		return refuse_socket(&r, REASON_METRIC_LB_NO_BACKEND_SLOT, __LINE__, family);
	backend = sock_choose(&r, &found, &id, family);
	if (!backend)
		return refuse_socket(&r, REASON_METRIC_LB_NO_BACKEND, __LINE__, family);
	__builtin_memcpy(&to, backend->addr, 16);
	port = backend->port;
	if (sock_remember(&r, &found, &to, port, id, family)) {
		count(REASON_METRIC_LB_REVERSE_ENTRY_UPDATE_FAILED, DIR_SERVICE, SOURCE_FILE,
		      __LINE__, 0);
		bpf_set_retval(-ENOMEM_);
		return SOCK_REFUSE;
	}
	write_address(ctx, &to, port, form);
	if (traced)
		trace_socket(&r, XLATE_POST_FORWARD, &to, port, family);
	return SOCK_ALLOW;
}

/* What a process is told of its peer. */
static __always_inline int backward(struct bpf_sock_addr *ctx, const __u8 form)
{
	const __u8 family = family_of(form);
	const struct lb_socket *asked;
	struct lb_socket_key key;
	struct request r = {};
	union address to;

	if (!begin(ctx, &r, form))
		return SOCK_ALLOW;
	socket_key(&key, r.cookie, &r.address, r.port, family);
	asked = map_lookup(map_of(LB_SOCKETS), &key);
	if (!asked)
		return SOCK_ALLOW;
	__builtin_memcpy(&to, asked->addr, 16);
	if (sock_tracing(AGGREGATE_LOW)) {
		trace_socket(&r, XLATE_PRE_REVERSE, &r.address, r.port, family);
		trace_socket(&r, XLATE_POST_REVERSE, &to, asked->port, family);
	}
	write_address(ctx, &to, asked->port, form);
	return SOCK_ALLOW;
}

int cil_sock4_connect(struct bpf_sock_addr *ctx)
{
	return forward(ctx, true, FORM_IPV4);
}

int cil_sock4_sendmsg(struct bpf_sock_addr *ctx)
{
	return forward(ctx, false, FORM_IPV4);
}

int cil_sock4_recvmsg(struct bpf_sock_addr *ctx)
{
	return backward(ctx, FORM_IPV4);
}

int cil_sock4_getpeername(struct bpf_sock_addr *ctx)
{
	return backward(ctx, FORM_IPV4);
}

int cil_sock6_connect(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		return forward(ctx, true, FORM_MAPPED);
	return forward(ctx, true, FORM_IPV6);
}

int cil_sock6_sendmsg(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		return forward(ctx, false, FORM_MAPPED);
	return forward(ctx, false, FORM_IPV6);
}

int cil_sock6_recvmsg(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		return backward(ctx, FORM_MAPPED);
	return backward(ctx, FORM_IPV6);
}

int cil_sock6_getpeername(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		return backward(ctx, FORM_MAPPED);
	return backward(ctx, FORM_IPV6);
}
