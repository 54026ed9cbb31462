/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The node's own policy (host firewall): an endpoint as any other, whose traffic is what the node's
 * addresses send and receive, at its network device and with pods. Without the option there is no
 * such endpoint, and the node's traffic is neither judged nor tracked.
 */
#ifndef CILIUM_HOST_FIREWALL_H
#define CILIUM_HOST_FIREWALL_H

#include "endpoints.h"

#define HOST_DROP(reason) DROP_AT(FILE_HOST_FIREWALL, reason)

/* The node as an endpoint, NULL while nobody asks for its policy. */
static __always_inline const struct endpoint_info *node_endpoint(void)
{
	const struct config *config = config_of();

	if (likely_(!(config->flags & CONFIG_HOST_FIREWALL)))
		return NULL;
	return endpoint_of_device(config->host_ifindex);
}

/* Is the address one of the node itself? On a link, a link-local address can be nobody else's. */
static __always_inline bool is_node_address(const struct endpoint_info *local,
					    const union address *address, const __u8 family)
{
	if (local)
		return local->flags & ENDPOINT_HOST;
	return family == FAMILY_IPV6 && is_link_local6(address);
}

/*
 * What is no matter of policy: neighbours and groups of the link, and outer packets of the tunnel,
 * in which pods' traffic is judged by itself.
 */
static __always_inline bool serves_the_link(const struct packet *p)
{
	return p->flags & PACKET_CONTROL || p->tuple.proto == IPPROTO_IGMP ||
	       (p->tuple.proto == IPPROTO_UDP && p->tuple.dport == config_of()->tunnel_port &&
		config_of()->tunnel_ifindex);
}

/* Does the node need this connection to live, whatever its policy says? */
static __always_inline bool exempt(const struct packet *p, const __u8 direction, const __u8 family)
{
	/* the initiator's packets carry the peer of an egress connection as their destination */
	bool at_destination = (direction == DIR_EGRESS) != (p->seen.reason == REASON_REPLY);
	const union address *peer = at_destination ? &p->tuple.daddr : &p->tuple.saddr;
	struct exempt_key key = {
		.port = p->port,
		.proto = p->tuple.proto,
		.direction = direction,
	};

	if (map_lookup(map_of(HOST_EXEMPT), &key))
		return true;
	if (family == FAMILY_IPV4)
		*(__u32 *)key.peer = peer->v4;
	else
		__builtin_memcpy(key.peer, peer, 16);
	return map_lookup(map_of(HOST_EXEMPT), &key);
}

#endif
