/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Services at sockets: which frontend a process asks, who of its backends serves it, and what the
 * address of a backend was when the process asked for it.
 *
 * Programs at sockets can be interrupted by others of their kind, so nothing here uses the scratch
 * room of the processor.
 */
#ifndef CILIUM_SOCK_LB_H
#define CILIUM_SOCK_LB_H

#include "endpoints.h"
#include "lb.h"
#include "metrics.h"
#include "ring.h"

/* Verdicts of programs at sockets. */
#define SOCK_REFUSE 0
#define SOCK_ALLOW  1

#define IPPROTO_MPTCP_ 262

/* What a process asks for, and who it is. */
struct request {
	union address address;
	__u16 port;   /* be */
	__u8 proto;   /* TCP or UDP */
	__u8 node;    /* a process of the node itself */
	__u64 cookie; /* of the socket */
	__u64 netns;  /* cookie of its namespace */
};

static __always_inline bool is_loopback(const union address *a, const __u8 family)
{
	if (family == FAMILY_IPV4)
		return (a->v4 & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(a->words[0] | a->words[1] | a->words[2]) && a->words[3] == bpf_htonl(1);
}

static __always_inline bool is_unspecified(const union address *a, const __u8 family)
{
	if (family == FAMILY_IPV4)
		return !a->v4;
	return !(a->halves[0] | a->halves[1]);
}

/* The identity of a node's address: ID_HOST, ID_REMOTE_NODE, or 0 for what is no node's. */
static __always_inline __u32 node_identity(const union address *address, const __u8 family)
{
	const struct endpoint_info *local = endpoint_of_address(address, family);
	const struct ipcache_info *info;

	if (local)
		return local->flags & ENDPOINT_HOST ? ID_HOST : 0;
	info = ipcache_of(address, family);
	if (!info || (info->identity != ID_HOST && info->identity != ID_REMOTE_NODE))
		return 0;
	return info->identity;
}

/* ---- which frontend ---- */

static __always_inline bool find_at(const union address *address, const struct request *r,
				    struct lb_found *found, const __u8 family)
{
	if (!lb_find_in(address, r->port, r->proto, LB_EXTERNAL, found, family))
		return false;
	if (found->flags & LB_TWO_SCOPES)
		return lb_find_in(address, r->port, r->proto, LB_INTERNAL, found, family);
	return true;
}

/*
 * NodePorts of any node's address, and host ports of this node's; the loopback address is the
 * node's for its own processes only. Whether it is a node's address is asked last, as it costs the
 * most.
 */
static __always_inline bool find_at_node(const struct request *r, struct lb_found *found,
					 const __u8 family)
{
	const struct config *config = config_of();
	__u16 port = bpf_ntohs(r->port);
	bool node_port = port >= config->node_port_min && port <= config->node_port_max;
	union address any = {};
	__u32 identity;

	if (!find_at(&any, r, found, family) ||
	    !(found->flags & (node_port ? LB_NODE_PORT : LB_HOST_PORT)))
		return false;
	if (is_loopback(&r->address, family))
		return r->node;
	identity = node_identity(&r->address, family);
	return identity == ID_HOST || (node_port && identity == ID_REMOTE_NODE);
}

/* The frontend asked for, which may be that of an address as a whole. */
static __always_inline bool sock_find(const struct request *r, struct lb_found *found,
				      const __u8 family)
{
	return find_at(&r->address, r, found, family) || find_at_node(r, found, family) ||
	       lb_find_in(&r->address, 0, 0, LB_EXTERNAL, found, family);
}

/*
 * Who could name any address in a service would get everybody's traffic to it: external addresses
 * and host ports are translated only where they are a node's. (CVE-2020-8554)
 */
static __always_inline bool is_foreign(const struct request *r, const struct lb_found *found,
				       const __u8 family)
{
	__u32 identity;

	if (likely_(!(found->flags & (LB_EXTERNAL_IP | LB_HOST_PORT))))
		return false;
	if (is_loopback(&r->address, family))
		return false;
	identity = node_identity(&r->address, family);
	return found->flags & LB_HOST_PORT ? identity != ID_HOST : !identity;
}

static __always_inline const struct netns_info *pod_of(__u64 netns)
{
	return map_lookup(map_of(NETNS), &netns);
}

/* A backend of a local redirect that reaches past it what others reach through it. */
static __always_inline bool is_exempt(const struct request *r, const struct lb_found *found)
{
	const struct netns_info *pod;

	if (likely_(!(found->flags & LB_SKIP_OWN)))
		return false;
	pod = pod_of(r->netns);
	return pod && pod->flags & NETNS_NO_REDIRECT;
}

/* ---- who serves ---- */

static __always_inline __u32 sock_pick(const struct request *r, const struct lb_found *found)
{
	if (!found->count)
		return 0;
	/* datagrams of a socket to one service stay together as long as its backends do */
	if (r->proto == IPPROTO_UDP)
		return lb_slot(found, r->cookie % found->count);
	return lb_pick_random(found);
}

static __always_inline const struct lb_backend *
sock_choose(const struct request *r, const struct lb_found *found, __u32 *id, const __u8 family)
{
	struct lb_affinity_key client = {.rev_nat = found->rev_nat, .netns = 1, .family = family};
	const struct lb_backend *backend;
	__u32 now;

	if (likely_(!(found->flags & LB_AFFINITY))) {
		*id = sock_pick(r, found);
		return *id ? lb_backend_of(*id) : NULL;
	}
	__builtin_memcpy(client.client, &r->netns, sizeof(r->netns));
	now = now_seconds();
	*id = lb_affine(&client, found, now, true);
	if (*id) {
		backend = lb_backend_of(*id);
		if (backend)
			return backend;
	}
	*id = sock_pick(r, found);
	if (!*id)
		return NULL;
	backend = lb_backend_of(*id);
	if (backend)
		lb_remember(&client, *id, now);
	return backend;
}

/* ---- back to what was asked ---- */

static __always_inline void socket_key(struct lb_socket_key *key, __u64 cookie,
				       const union address *address, __u16 port, const __u8 family)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	__builtin_memcpy(key->addr, address, 16);
	key->port = port;
	key->family = family;
}

static __always_inline long sock_remember(const struct request *r, const struct lb_found *found,
					  const union address *backend, __u16 port, __u32 id,
					  const __u8 family)
{
	struct lb_socket asked = {.port = r->port, .rev_nat = found->rev_nat, .backend = id};
	const struct lb_socket *last;
	struct lb_socket_key key;

	__builtin_memcpy(asked.addr, &r->address, 16);
	socket_key(&key, r->cookie, backend, port, family);
	/* datagram after datagram asks the same, and a look-up is cheaper than an update */
	if (r->proto == IPPROTO_UDP) {
		last = map_lookup(map_of(LB_SOCKETS), &key);
		if (last && last->port == r->port && last->rev_nat == found->rev_nat &&
		    last->backend == id && same_address(&r->address, last->addr, FAMILY_IPV6))
			return 0;
	}
	return map_update(map_of(LB_SOCKETS), &key, &asked, BPF_ANY);
}

static __always_inline void sock_forget(__u64 cookie, const union address *address, __u16 port,
					const __u8 family)
{
	struct lb_socket_key key;

	socket_key(&key, cookie, address, port, family);
	map_delete(map_of(LB_SOCKETS), &key);
}

/* ---- events ---- */

static __always_inline void event_of_socket(struct event *e, const struct request *r,
					    const union address *address, __u16 port,
					    const __u8 family)
{
	const struct netns_info *pod = r->node ? NULL : pod_of(r->netns);
	__u64 cgroup = bpf_get_current_cgroup_id();

	e->proto = r->proto;
	e->flags = EVENT_L3 | EVENT_L4 | (family == FAMILY_IPV6 ? EVENT_IPV6 : 0);
	e->endpoint = pod ? pod->endpoint : 0;
	e->src_identity = pod ? pod->identity : r->node ? ID_HOST : ID_UNKNOWN;
	e->dport = port;
	__builtin_memcpy(e->daddr, address, 16);
	__builtin_memcpy(e->orig_saddr, &r->cookie, 8);
	__builtin_memcpy(e->orig_saddr + 8, &cgroup, 8);
}

/* A translation at the socket: one record of either side of it. */
static __always_inline void trace_socket(const struct request *r, const __u8 point,
					 const union address *address, __u16 port,
					 const __u8 family)
{
	__u32 sequence;
	struct event *e = event_begin(EVENT_TRACE_SOCK, point, &sequence);

	if (!e)
		return;
	event_of_socket(e, r, address, port, family);
	event_commit(e, sequence);
}

static __always_inline bool sock_tracing(__u32 below)
{
	const struct config *config = config_of();

	return config->flags & CONFIG_LB_SOCKET_TRACE && config->flags & CONFIG_HUBBLE &&
	       config->aggregation < below;
}

#endif
