/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Who is behind a device or an address: endpoints of this node and identities of everyone else.
 */
#ifndef CILIUM_ENDPOINTS_H
#define CILIUM_ENDPOINTS_H

#include "packet.h"

/* Identities of labels start here and end where those of CIDRs, local to each node, begin. */
#define ID_CLUSTER_MIN 256
#define ID_CLUSTER_MAX 0x00ffffff

/* Of the outer packets of the tunnel. */
#define OUTER_TTL 64

static __always_inline const struct endpoint_info *endpoint_of_device(__u32 ifindex)
{
	struct device_key key = {.ifindex = ifindex};

	return map_lookup(map_of(DEVICES), &key);
}

static __always_inline const struct endpoint_info *endpoint_of_address(const union address *address,
								       const __u8 family)
{
	struct endpoint_key key = {.family = family};

	if (family == FAMILY_IPV4)
		*(__u32 *)key.ip = address->v4;
	else
		__builtin_memcpy(key.ip, address, 16);
	return map_lookup(map_of(LXC), &key);
}

static __always_inline const struct ipcache_info *ipcache_of(const union address *address,
							     const __u8 family)
{
	struct ipcache_key key = {.family = family};

	if (family == FAMILY_IPV4) {
		key.prefixlen = IPCACHE_STATIC_BITS + 32;
		*(__u32 *)key.ip = address->v4;
	} else {
		key.prefixlen = IPCACHE_STATIC_BITS + 128;
		__builtin_memcpy(key.ip, address, 16);
	}
	return map_lookup(map_of(IPCACHE), &key);
}

static __always_inline __u32 identity_or_world(const struct ipcache_info *info)
{
	return info ? info->identity : ID_WORLD;
}

/* Is the address reached through the tunnel? */
static __always_inline bool has_tunnel(const struct ipcache_info *info)
{
	return info && info->flags & IPCACHE_HAS_TUNNEL && !(info->flags & IPCACHE_SKIP_TUNNEL) &&
	       config_of()->flags & CONFIG_TUNNEL;
}

static __always_inline __u32 identity_of_address(const union address *address, const __u8 family)
{
	const struct endpoint_info *local = endpoint_of_address(address, family);

	return local ? local->identity : identity_or_world(ipcache_of(address, family));
}

/* A pod of the cluster: labelled, so never an address of the world or of a node. */
static __always_inline bool is_cluster_identity(__u32 identity)
{
	return identity >= ID_CLUSTER_MIN && identity <= ID_CLUSTER_MAX;
}

#endif
