/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The tail calls: one slot of cilium_calls for each program that another one continues in. Entry
 * programs only look at the kind of the packet; the work is in one program per family, so that the
 * verifier sees small programs. The loader reads slot and program name from these lines.
 */
#ifndef CILIUM_CALLS_H
#define CILIUM_CALLS_H

enum call {
	CALL_FROM_CONTAINER_IPV4 = 0,   /* tail_from_container_ipv4 */
	CALL_FROM_CONTAINER_IPV6 = 1,   /* tail_from_container_ipv6 */
	CALL_FROM_CONTAINER_ARP = 2,    /* tail_from_container_arp */
	CALL_FROM_CONTAINER_NDP = 3,    /* tail_from_container_ndp */
	CALL_TO_CONTAINER_IPV4 = 4,     /* tail_to_container_ipv4 */
	CALL_TO_CONTAINER_IPV6 = 5,     /* tail_to_container_ipv6 */
	CALL_FROM_OVERLAY_IPV4 = 6,     /* tail_from_overlay_ipv4 */
	CALL_FROM_OVERLAY_IPV6 = 7,     /* tail_from_overlay_ipv6 */
	CALL_FROM_NETDEV_IPV4 = 8,      /* tail_from_netdev_ipv4 */
	CALL_FROM_NETDEV_IPV6 = 9,      /* tail_from_netdev_ipv6 */
	CALL_TO_NETDEV_IPV4 = 10,       /* tail_to_netdev_ipv4 */
	CALL_TO_NETDEV_IPV6 = 11,       /* tail_to_netdev_ipv6 */
	CALL_FROM_HOST_IPV4 = 12,       /* tail_from_host_ipv4 */
	CALL_FROM_HOST_IPV6 = 13,       /* tail_from_host_ipv6 */
	CALL_TO_PROXY_IPV4 = 14,        /* tail_to_proxy_ipv4 */
	CALL_TO_PROXY_IPV6 = 15,        /* tail_to_proxy_ipv6 */
	CALL_TO_HOST_IPV4 = 16,         /* tail_to_host_ipv4 */
	CALL_TO_HOST_IPV6 = 17,         /* tail_to_host_ipv6 */
	CALL_HOST_TUNNEL_IPV4 = 18,     /* tail_host_tunnel_ipv4 */
	CALL_HOST_TUNNEL_IPV6 = 19,     /* tail_host_tunnel_ipv6 */
	CALL_PROXY_NETDEV_IPV4 = 20,    /* tail_proxy_netdev_ipv4 */
	CALL_PROXY_NETDEV_IPV6 = 21,    /* tail_proxy_netdev_ipv6 */
	CALL_HOST_INGRESS_IPV4 = 22,    /* tail_host_ingress_ipv4 */
	CALL_HOST_INGRESS_IPV6 = 23,    /* tail_host_ingress_ipv6 */
	CALL_HOST_EGRESS_IPV4 = 24,     /* tail_host_egress_ipv4 */
	CALL_HOST_EGRESS_IPV6 = 25,     /* tail_host_egress_ipv6 */
	CALL_MASQUERADE_IPV4 = 26,      /* tail_masquerade_ipv4 */
	CALL_MASQUERADE_IPV6 = 27,      /* tail_masquerade_ipv6 */
	CALL_SERVICE_IPV4 = 28,         /* tail_service_ipv4 */
	CALL_SERVICE_IPV6 = 29,         /* tail_service_ipv6 */
	CALL_SERVICE_ERROR_IPV4 = 30,   /* tail_service_error_ipv4 */
	CALL_SERVICE_ERROR_IPV6 = 31,   /* tail_service_error_ipv6 */
	CALL_HAIRPIN_ASK_IPV4 = 32,     /* tail_hairpin_ask_ipv4 */
	CALL_HAIRPIN_ASK_IPV6 = 33,     /* tail_hairpin_ask_ipv6 */
	CALL_HAIRPIN_BACK_IPV4 = 34,    /* tail_hairpin_back_ipv4 */
	CALL_HAIRPIN_BACK_IPV6 = 35,    /* tail_hairpin_back_ipv6 */
	CALL_SERVICE_REFUSE_IPV4 = 36,  /* tail_service_refuse_ipv4 */
	CALL_SERVICE_REFUSE_IPV6 = 37,  /* tail_service_refuse_ipv6 */
	CALL_SEND_TRANSLATED_IPV4 = 38, /* tail_send_translated_ipv4 */
	CALL_SEND_TRANSLATED_IPV6 = 39, /* tail_send_translated_ipv6 */
	CALL_NODES_SERVE_IPV4 = 40,     /* tail_nodes_serve_ipv4 */
	CALL_NODES_SERVE_IPV6 = 41,     /* tail_nodes_serve_ipv6 */
	CALL_NODES_LOCAL_IPV4 = 42,     /* tail_nodes_local_ipv4 */
	CALL_NODES_LOCAL_IPV6 = 43,     /* tail_nodes_local_ipv6 */
	CALL_NODES_REMOTE_IPV4 = 44,    /* tail_nodes_remote_ipv4 */
	CALL_NODES_REMOTE_IPV6 = 45,    /* tail_nodes_remote_ipv6 */
	CALL_NODES_RETURN_IPV4 = 46,    /* tail_nodes_return_ipv4 */
	CALL_NODES_RETURN_IPV6 = 47,    /* tail_nodes_return_ipv6 */
	CALL_NODES_ERROR_IPV4 = 48,     /* tail_nodes_error_ipv4 */
	CALL_NODES_ERROR_IPV6 = 49,     /* tail_nodes_error_ipv6 */
	CALL_NODES_DIRECT_IPV4 = 50,    /* tail_nodes_direct_ipv4 */
	CALL_NODES_DIRECT_IPV6 = 51,    /* tail_nodes_direct_ipv6 */
	CALL_NODES_LEARN_IPV4 = 52,     /* tail_nodes_learn_ipv4 */
	CALL_NODES_LEARN_IPV6 = 53,     /* tail_nodes_learn_ipv6 */
	CALL_NODES_ANSWER_IPV4 = 54,    /* tail_nodes_answer_ipv4 */
	CALL_NODES_ANSWER_IPV6 = 55,    /* tail_nodes_answer_ipv6 */
	CALL_NODES_REFUSE_IPV4 = 56,    /* tail_nodes_refuse_ipv4 */
	CALL_NODES_REFUSE_IPV6 = 57,    /* tail_nodes_refuse_ipv6 */
	CALL_WATCH_IPV4 = 58,           /* tail_watch_ipv4 */
	CALL_WATCH_IPV6 = 59,           /* tail_watch_ipv6 */
};

#endif
