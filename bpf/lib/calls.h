/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The tail calls: one slot of cilium_calls for each program that another one continues in. Entry
 * programs only look at the kind of the packet; the work is in one program per family, so that the
 * verifier sees small programs. The loader reads slot and program name from these lines.
 */
#ifndef CILIUM_CALLS_H
#define CILIUM_CALLS_H

enum call {
	CALL_FROM_CONTAINER_IPV4 = 0, /* tail_from_container_ipv4 */
	CALL_FROM_CONTAINER_IPV6 = 1, /* tail_from_container_ipv6 */
	CALL_FROM_CONTAINER_ARP = 2,  /* tail_from_container_arp */
	CALL_FROM_CONTAINER_NDP = 3,  /* tail_from_container_ndp */
	CALL_TO_CONTAINER_IPV4 = 4,   /* tail_to_container_ipv4 */
	CALL_TO_CONTAINER_IPV6 = 5,   /* tail_to_container_ipv6 */
	CALL_FROM_OVERLAY_IPV4 = 6,   /* tail_from_overlay_ipv4 */
	CALL_FROM_OVERLAY_IPV6 = 7,   /* tail_from_overlay_ipv6 */
	CALL_FROM_NETDEV_IPV4 = 8,    /* tail_from_netdev_ipv4 */
	CALL_FROM_NETDEV_IPV6 = 9,    /* tail_from_netdev_ipv6 */
	CALL_TO_NETDEV_IPV4 = 10,     /* tail_to_netdev_ipv4 */
	CALL_TO_NETDEV_IPV6 = 11,     /* tail_to_netdev_ipv6 */
	CALL_FROM_HOST_IPV4 = 12,     /* tail_from_host_ipv4 */
	CALL_FROM_HOST_IPV6 = 13,     /* tail_from_host_ipv6 */
	CALL_TO_PROXY_IPV4 = 14,      /* tail_to_proxy_ipv4 */
	CALL_TO_PROXY_IPV6 = 15,      /* tail_to_proxy_ipv6 */
	CALL_TO_HOST_IPV4 = 16,       /* tail_to_host_ipv4 */
	CALL_TO_HOST_IPV6 = 17,       /* tail_to_host_ipv6 */
	CALL_HOST_TUNNEL_IPV4 = 18,   /* tail_host_tunnel_ipv4 */
	CALL_HOST_TUNNEL_IPV6 = 19,   /* tail_host_tunnel_ipv6 */
	CALL_PROXY_NETDEV_IPV4 = 20,  /* tail_proxy_netdev_ipv4 */
	CALL_PROXY_NETDEV_IPV6 = 21,  /* tail_proxy_netdev_ipv6 */
	CALL_HOST_INGRESS_IPV4 = 22,  /* tail_host_ingress_ipv4 */
	CALL_HOST_INGRESS_IPV6 = 23,  /* tail_host_ingress_ipv6 */
	CALL_HOST_EGRESS_IPV4 = 24,   /* tail_host_egress_ipv4 */
	CALL_HOST_EGRESS_IPV6 = 25,   /* tail_host_egress_ipv6 */
	CALL_MASQUERADE_IPV4 = 26,    /* tail_masquerade_ipv4 */
	CALL_MASQUERADE_IPV6 = 27,    /* tail_masquerade_ipv6 */
};

#endif
