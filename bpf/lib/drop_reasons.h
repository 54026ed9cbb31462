/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The one list of drop reasons. The number travels in events and counters, the name (without
 * DROP_, or DROP_DROP_ folded to DROP_) is that of flow.DropReason, and the comment is the text
 * that users read: Python makes its enum and its texts from this file.
 */
#ifndef CILIUM_DROP_REASONS_H
#define CILIUM_DROP_REASONS_H

/* clang-format off */
enum drop_reason {
	DROP_INVALID_SOURCE_MAC = 130, /* Invalid source mac */
	DROP_INVALID_DESTINATION_MAC = 131, /* Invalid destination mac */
	DROP_INVALID_SOURCE_IP = 132, /* Invalid source ip */
	DROP_POLICY_DENIED = 133, /* Policy denied */
	DROP_INVALID_PACKET_DROPPED = 134, /* Invalid packet */
	DROP_CT_TRUNCATED_OR_INVALID_HEADER = 135, /* CT: Truncated or invalid header */
	DROP_CT_MISSING_TCP_ACK_FLAG = 136, /* Fragmentation needed */
	DROP_CT_UNKNOWN_L4_PROTOCOL = 137, /* CT: Unknown L4 protocol */
	DROP_CT_CANNOT_CREATE_ENTRY_FROM_PACKET = 138, /* CT: Can't create entry from packet */
	DROP_UNSUPPORTED_L3_PROTOCOL = 139, /* Unsupported L3 protocol */
	DROP_MISSED_TAIL_CALL = 140, /* Missed tail call */
	DROP_ERROR_WRITING_TO_PACKET = 141, /* Error writing to packet */
	DROP_UNKNOWN_L4_PROTOCOL = 142, /* Unknown L4 protocol */
	DROP_UNKNOWN_ICMPV4_CODE = 143, /* Unknown ICMPv4 code */
	DROP_UNKNOWN_ICMPV4_TYPE = 144, /* Unknown ICMPv4 type */
	DROP_UNKNOWN_ICMPV6_CODE = 145, /* Unknown ICMPv6 code */
	DROP_UNKNOWN_ICMPV6_TYPE = 146, /* Unknown ICMPv6 type */
	DROP_ERROR_RETRIEVING_TUNNEL_KEY = 147, /* Error retrieving tunnel key */
	DROP_ERROR_RETRIEVING_TUNNEL_OPTIONS = 148, /* Error retrieving tunnel options */
	DROP_INVALID_GENEVE_OPTION = 149, /* Invalid Geneve option */
	DROP_UNKNOWN_L3_TARGET_ADDRESS = 150, /* Unknown L3 target address */
	DROP_STALE_OR_UNROUTABLE_IP = 151, /* Stale or unroutable IP */
	DROP_NO_MATCHING_LOCAL_CONTAINER_FOUND = 152, /* No matching local container found */
	DROP_ERROR_WHILE_CORRECTING_L3_CHECKSUM = 153, /* Error while correcting L3 checksum */
	DROP_ERROR_WHILE_CORRECTING_L4_CHECKSUM = 154, /* Error while correcting L4 checksum */
	DROP_CT_MAP_INSERTION_FAILED = 155, /* CT: Map insertion failed */
	DROP_INVALID_IPV6_EXTENSION_HEADER = 156, /* Invalid IPv6 extension header */
	DROP_IP_FRAGMENTATION_NOT_SUPPORTED = 157, /* IP fragmentation not supported */
	DROP_SERVICE_BACKEND_NOT_FOUND = 158, /* Service backend not found */
	DROP_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT = 160, /* No tunnel/encapsulation endpoint (datapath BUG!) */
	DROP_FAILED_TO_INSERT_INTO_PROXYMAP = 161, /* NAT 46/64 not enabled */
	DROP_REACHED_EDT_RATE_LIMITING_DROP_HORIZON = 162, /* Reached EDT rate-limiting drop horizon */
	DROP_UNKNOWN_CONNECTION_TRACKING_STATE = 163, /* Unknown connection tracking state */
	DROP_LOCAL_HOST_IS_UNREACHABLE = 164, /* Local host is unreachable */
	DROP_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION = 165, /* No configuration available to perform policy decision */
	DROP_UNSUPPORTED_L2_PROTOCOL = 166, /* Unsupported L2 protocol */
	DROP_NO_MAPPING_FOR_NAT_MASQUERADE = 167, /* No mapping for NAT masquerade */
	DROP_UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE = 168, /* Unsupported protocol for NAT masquerade */
	DROP_FIB_LOOKUP_FAILED = 169, /* FIB lookup failed */
	DROP_ENCAPSULATION_TRAFFIC_IS_PROHIBITED = 170, /* Encapsulation traffic is prohibited */
	DROP_INVALID_IDENTITY = 171, /* Invalid identity */
	DROP_UNKNOWN_SENDER = 172, /* Unknown sender */
	DROP_NAT_NOT_NEEDED = 173, /* NAT not needed */
	DROP_IS_A_CLUSTERIP = 174, /* Is a ClusterIP */
	DROP_FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND = 175, /* First logical datagram fragment not found */
	DROP_FORBIDDEN_ICMPV6_MESSAGE = 176, /* Forbidden ICMPv6 message */
	DROP_DENIED_BY_LB_SRC_RANGE_CHECK = 177, /* Denied by LB src range check */
	DROP_SOCKET_LOOKUP_FAILED = 178, /* Socket lookup failed */
	DROP_SOCKET_ASSIGN_FAILED = 179, /* Socket assign failed */
	DROP_PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL = 180, /* Proxy redirection not supported for protocol */
	DROP_POLICY_DENY = 181, /* Policy denied by denylist */
	DROP_VLAN_FILTERED = 182, /* VLAN traffic disallowed by VLAN filter */
	DROP_INVALID_VNI = 183, /* Incorrect VNI from VTEP */
	DROP_INVALID_TC_BUFFER = 184, /* Failed to update or lookup TC buffer */
	DROP_NO_SID = 185, /* No SID was found for the IP address */
	DROP_MISSING_SRV6_STATE = 186, /* SRv6 state was removed during tail call */
	DROP_NAT46 = 187, /* L3 translation from IPv4 to IPv6 failed (NAT46) */
	DROP_NAT64 = 188, /* L3 translation from IPv6 to IPv4 failed (NAT64) */
	DROP_AUTH_REQUIRED = 189, /* Authentication required */
	DROP_CT_NO_MAP_FOUND = 190, /* No conntrack map found */
	DROP_SNAT_NO_MAP_FOUND = 191, /* No nat map found */
	DROP_INVALID_CLUSTER_ID = 192, /* Invalid ClusterID */
	DROP_UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP = 193, /* Unsupported packet protocol for DSR encapsulation */
	DROP_NO_EGRESS_GATEWAY = 194, /* No egress gateway found */
	DROP_UNENCRYPTED_TRAFFIC = 195, /* Traffic is unencrypted */
	DROP_TTL_EXCEEDED = 196, /* TTL exceeded */
	DROP_NO_NODE_ID = 197, /* No node ID found */
	DROP_RATE_LIMITED = 198, /* Rate limited */
	DROP_IGMP_HANDLED = 199, /* IGMP handled */
	DROP_IGMP_SUBSCRIBED = 200, /* IGMP subscribed */
	DROP_MULTICAST_HANDLED = 201, /* Multicast handled */
	DROP_HOST_NOT_READY = 202, /* Host datapath not ready */
	DROP_EP_NOT_READY = 203, /* Endpoint policy program not available */
	DROP_NO_EGRESS_IP = 204, /* No Egress IP configured */
	DROP_PUNT_PROXY = 205, /* Punt to proxy */
	DROP_KERNEL = 255, /* Dropped by the kernel */
};

/* Counted in the metrics map below the drop codes; nothing is dropped. */
enum metric_reason {
	REASON_METRIC_FORWARDED = 0, /* Success */
	REASON_METRIC_INVALID = 2, /* Invalid packet */
	REASON_METRIC_PLAINTEXT = 3, /* Interface */
	REASON_METRIC_DECRYPTED = 4, /* Interface Decrypted */
	REASON_METRIC_LB_NO_BACKEND_SLOT = 5, /* LB, sock cgroup: No backend slot entry found */
	REASON_METRIC_LB_NO_BACKEND = 6, /* LB, sock cgroup: No backend entry found */
	REASON_METRIC_LB_REVERSE_ENTRY_UPDATE_FAILED = 7, /* LB, sock cgroup: Reverse entry update failed */
	REASON_METRIC_LB_REVERSE_ENTRY_STALE = 8, /* LB, sock cgroup: Reverse entry stale */
	REASON_METRIC_FRAGMENT = 9, /* Fragmented packet */
	REASON_METRIC_FRAGMENT_UPDATE_FAILED = 10, /* Fragmented packet entry update failed */
	REASON_METRIC_MISSED_CUSTOM_CALL = 11, /* Missed tail call to custom program */
	REASON_METRIC_DECRYPTING = 12, /* Interface Decrypting */
	REASON_METRIC_ENCRYPTING = 13, /* Interface Encrypting */
	REASON_METRIC_LB_REVERSE_ENTRY_DELETED = 14, /* LB: sock cgroup: Reverse entry delete succeeded */
	REASON_METRIC_MTU_MESSAGE = 15, /* MTU error message */
};
/* clang-format on */

#endif
