/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Why the kernel itself drops packets: our numbers for its reasons, which get other numbers from one
 * kernel to the next. The name (without KERNEL_DROP_) is the kernel's (without SKB_DROP_REASON_), so
 * that the agent finds what number this kernel gives it, and the comment is the text users read. A
 * reason that is not listed counts as OTHER.
 */
#ifndef CILIUM_KERNEL_DROPS_H
#define CILIUM_KERNEL_DROPS_H

/* clang-format off */
enum kernel_drop {
	KERNEL_DROP_OTHER = 1, /* A reason that is not known here */
	KERNEL_DROP_NOT_SPECIFIED = 2, /* No reason given */
	KERNEL_DROP_NO_SOCKET = 3, /* Nobody listens at the port */
	KERNEL_DROP_SOCKET_CLOSE = 4, /* The socket was closed */
	KERNEL_DROP_SOCKET_FILTER = 5, /* The socket's filter refused it */
	KERNEL_DROP_SOCKET_RCVBUFF = 6, /* The socket's receive buffer is full */
	KERNEL_DROP_UNIX_DISCONNECT = 7, /* The socket was disconnected */
	KERNEL_DROP_UNIX_SKIP_OOB = 8, /* Out-of-band data was skipped */
	KERNEL_DROP_PKT_TOO_SMALL = 9, /* The packet is too small */
	KERNEL_DROP_TCP_CSUM = 10, /* Wrong TCP checksum */
	KERNEL_DROP_UDP_CSUM = 11, /* Wrong UDP checksum */
	KERNEL_DROP_NETFILTER_DROP = 12, /* A rule of netfilter (iptables, nftables) dropped it */
	KERNEL_DROP_OTHERHOST = 13, /* Addressed to another machine */
	KERNEL_DROP_IP_CSUM = 14, /* Wrong checksum of the IPv4 header */
	KERNEL_DROP_IP_INHDR = 15, /* Malformed IP header */
	KERNEL_DROP_IP_RPFILTER = 16, /* The reverse path filter refused its source */
	KERNEL_DROP_UNICAST_IN_L2_MULTICAST = 17, /* Unicast address in a broadcast frame */
	KERNEL_DROP_XFRM_POLICY = 18, /* Refused by an IPsec policy */
	KERNEL_DROP_IP_NOPROTO = 19, /* Nobody handles the protocol */
	KERNEL_DROP_PROTO_MEM = 20, /* The protocol's memory is exhausted */
	KERNEL_DROP_TCP_AUTH_HDR = 21, /* Wrong TCP authentication header */
	KERNEL_DROP_TCP_MD5NOTFOUND = 22, /* TCP MD5 signature missing */
	KERNEL_DROP_TCP_MD5UNEXPECTED = 23, /* Unexpected TCP MD5 signature */
	KERNEL_DROP_TCP_MD5FAILURE = 24, /* Wrong TCP MD5 signature */
	KERNEL_DROP_TCP_AONOTFOUND = 25, /* TCP-AO signature missing */
	KERNEL_DROP_TCP_AOUNEXPECTED = 26, /* Unexpected TCP-AO signature */
	KERNEL_DROP_TCP_AOKEYNOTFOUND = 27, /* No such TCP-AO key */
	KERNEL_DROP_TCP_AOFAILURE = 28, /* Wrong TCP-AO signature */
	KERNEL_DROP_SOCKET_BACKLOG = 29, /* The socket's backlog is full */
	KERNEL_DROP_TCP_FLAGS = 30, /* Invalid TCP flags */
	KERNEL_DROP_TCP_ABORT_ON_DATA = 31, /* Data for a connection that was closed */
	KERNEL_DROP_TCP_ZEROWINDOW = 32, /* The receive window is closed */
	KERNEL_DROP_TCP_OLD_DATA = 33, /* TCP data that came before */
	KERNEL_DROP_TCP_OVERWINDOW = 34, /* TCP data beyond the receive window */
	KERNEL_DROP_TCP_OFOMERGE = 35, /* TCP data that is there already, out of order */
	KERNEL_DROP_TCP_RFC7323_PAWS = 36, /* TCP timestamp too old */
	KERNEL_DROP_TCP_RFC7323_PAWS_ACK = 37, /* TCP timestamp of an acknowledgement too old */
	KERNEL_DROP_TCP_RFC7323_TW_PAWS = 38, /* TCP timestamp too old for a closed connection */
	KERNEL_DROP_TCP_RFC7323_TSECR = 39, /* Invalid TCP timestamp echo */
	KERNEL_DROP_TCP_LISTEN_OVERFLOW = 40, /* The listening socket's queue is full */
	KERNEL_DROP_TCP_OLD_SEQUENCE = 41, /* TCP sequence number too old */
	KERNEL_DROP_TCP_INVALID_SEQUENCE = 42, /* TCP sequence number outside the window */
	KERNEL_DROP_TCP_INVALID_END_SEQUENCE = 43, /* End of TCP data outside the window */
	KERNEL_DROP_TCP_INVALID_ACK_SEQUENCE = 44, /* TCP acknowledgement outside the window */
	KERNEL_DROP_TCP_RESET = 45, /* TCP reset */
	KERNEL_DROP_TCP_INVALID_SYN = 46, /* Unexpected TCP SYN */
	KERNEL_DROP_TCP_CLOSE = 47, /* The TCP connection is closed */
	KERNEL_DROP_TCP_FASTOPEN = 48, /* TCP fast open failed */
	KERNEL_DROP_TCP_OLD_ACK = 49, /* TCP acknowledgement that came before */
	KERNEL_DROP_TCP_TOO_OLD_ACK = 50, /* TCP acknowledgement too old */
	KERNEL_DROP_TCP_ACK_UNSENT_DATA = 51, /* TCP acknowledgement of data that was never sent */
	KERNEL_DROP_TCP_OFO_QUEUE_PRUNE = 52, /* TCP data out of order given up for want of memory */
	KERNEL_DROP_TCP_OFO_DROP = 53, /* No memory for TCP data out of order */
	KERNEL_DROP_IP_OUTNOROUTES = 54, /* No route to the destination */
	KERNEL_DROP_BPF_CGROUP_EGRESS = 55, /* A BPF program of a cgroup refused it */
	KERNEL_DROP_IPV6DISABLED = 56, /* IPv6 is disabled on the device */
	KERNEL_DROP_NEIGH_CREATEFAIL = 57, /* No neighbour entry could be made */
	KERNEL_DROP_NEIGH_FAILED = 58, /* The neighbour does not answer */
	KERNEL_DROP_NEIGH_QUEUEFULL = 59, /* Too many packets wait for the neighbour */
	KERNEL_DROP_NEIGH_DEAD = 60, /* The neighbour entry is gone */
	KERNEL_DROP_NEIGH_HH_FILLFAIL = 61, /* No link-layer header could be written */
	KERNEL_DROP_TC_EGRESS = 62, /* A tc program dropped it on the way out */
	KERNEL_DROP_SECURITY_HOOK = 63, /* A security module refused it */
	KERNEL_DROP_QDISC_DROP = 64, /* The queueing discipline dropped it */
	KERNEL_DROP_QDISC_OVERLIMIT = 65, /* The queueing discipline's limit is reached */
	KERNEL_DROP_QDISC_CONGESTED = 66, /* The queueing discipline found congestion */
	KERNEL_DROP_CAKE_FLOOD = 67, /* The CAKE queue found a flood */
	KERNEL_DROP_FQ_BAND_LIMIT = 68, /* The fq queue's limit of a band is reached */
	KERNEL_DROP_FQ_HORIZON_LIMIT = 69, /* Time to send too far ahead for the fq queue */
	KERNEL_DROP_FQ_FLOW_LIMIT = 70, /* The fq queue's limit of a flow is reached */
	KERNEL_DROP_CPU_BACKLOG = 71, /* The processor's backlog is full */
	KERNEL_DROP_XDP = 72, /* An XDP program dropped it */
	KERNEL_DROP_TC_INGRESS = 73, /* A tc program dropped it on the way in */
	KERNEL_DROP_UNHANDLED_PROTO = 74, /* Nobody handles the protocol of the frame */
	KERNEL_DROP_SKB_CSUM = 75, /* The checksum could not be made */
	KERNEL_DROP_SKB_GSO_SEG = 76, /* The packet could not be segmented */
	KERNEL_DROP_SKB_UCOPY_FAULT = 77, /* The process's memory could not be read */
	KERNEL_DROP_DEV_HDR = 78, /* No header of the device could be written */
	KERNEL_DROP_DEV_READY = 79, /* The device is not up */
	KERNEL_DROP_FULL_RING = 80, /* The device's ring is full */
	KERNEL_DROP_NOMEM = 81, /* No memory */
	KERNEL_DROP_HDR_TRUNC = 82, /* Truncated header */
	KERNEL_DROP_TAP_FILTER = 83, /* The tap device's filter refused it */
	KERNEL_DROP_TAP_TXFILTER = 84, /* The tap device's transmit filter refused it */
	KERNEL_DROP_ICMP_CSUM = 85, /* Wrong ICMP checksum */
	KERNEL_DROP_INVALID_PROTO = 86, /* Invalid protocol */
	KERNEL_DROP_IP_INADDRERRORS = 87, /* The host is not the address's and does not forward */
	KERNEL_DROP_IP_INNOROUTES = 88, /* No route for a packet that came in */
	KERNEL_DROP_IP_LOCAL_SOURCE = 89, /* The source is an address of the host itself */
	KERNEL_DROP_IP_INVALID_SOURCE = 90, /* Invalid source address */
	KERNEL_DROP_IP_LOCALNET = 91, /* Loopback address from the network */
	KERNEL_DROP_IP_INVALID_DEST = 92, /* Invalid destination address */
	KERNEL_DROP_PKT_TOO_BIG = 93, /* The packet is too big for the way */
	KERNEL_DROP_DUP_FRAG = 94, /* Fragment that came before */
	KERNEL_DROP_FRAG_REASM_TIMEOUT = 95, /* Fragments did not come in time */
	KERNEL_DROP_FRAG_TOO_FAR = 96, /* Too many fragments of other packets between */
	KERNEL_DROP_TCP_MINTTL = 97, /* TTL below the socket's minimum */
	KERNEL_DROP_IPV6_BAD_EXTHDR = 98, /* Malformed IPv6 extension header */
	KERNEL_DROP_IPV6_NDISC_FRAG = 99, /* Fragmented neighbour discovery */
	KERNEL_DROP_IPV6_NDISC_HOP_LIMIT = 100, /* Neighbour discovery from afar */
	KERNEL_DROP_IPV6_NDISC_BAD_CODE = 101, /* Invalid code of neighbour discovery */
	KERNEL_DROP_IPV6_NDISC_BAD_OPTIONS = 102, /* Invalid options of neighbour discovery */
	KERNEL_DROP_IPV6_NDISC_NS_OTHERHOST = 103, /* Neighbour solicitation for another host */
	KERNEL_DROP_TC_COOKIE_ERROR = 105, /* A tc program's state was lost */
	KERNEL_DROP_PACKET_SOCK_ERROR = 106, /* A packet socket had no room for it */
	KERNEL_DROP_TC_CHAIN_NOTFOUND = 107, /* There is no such tc chain */
	KERNEL_DROP_TC_RECLASSIFY_LOOP = 108, /* tc classified it too often */
	KERNEL_DROP_VXLAN_INVALID_HDR = 109, /* Malformed VXLAN header */
	KERNEL_DROP_VXLAN_VNI_NOT_FOUND = 110, /* No VXLAN device has its network identifier */
	KERNEL_DROP_MAC_INVALID_SOURCE = 111, /* Invalid source MAC address */
	KERNEL_DROP_VXLAN_ENTRY_EXISTS = 112, /* The VXLAN entry exists */
	KERNEL_DROP_NO_TX_TARGET = 113, /* No device to send to */
	KERNEL_DROP_IP_TUNNEL_ECN = 114, /* Congestion marks of the tunnel contradict each other */
	KERNEL_DROP_TUNNEL_TXINFO = 115, /* The packet carries no tunnel to send it to */
	KERNEL_DROP_LOCAL_MAC = 116, /* The source MAC address is the device's own */
	KERNEL_DROP_ARP_PVLAN_DISABLE = 117, /* Proxy ARP is off */
	KERNEL_DROP_MAC_IEEE_MAC_CONTROL = 118, /* Control frame of the link */
	KERNEL_DROP_BRIDGE_INGRESS_STP_STATE = 119, /* The bridge's port does not forward */
	KERNEL_DROP_CAN_RX_INVALID_FRAME = 120, /* Invalid CAN frame */
	KERNEL_DROP_CANFD_RX_INVALID_FRAME = 121, /* Invalid CAN FD frame */
	KERNEL_DROP_CANXL_RX_INVALID_FRAME = 122, /* Invalid CAN XL frame */
	KERNEL_DROP_PFMEMALLOC = 123, /* Memory for emergencies only */
	KERNEL_DROP_DUALPI2_STEP_DROP = 124, /* The DualPI2 queue dropped it */
	KERNEL_DROP_PSP_INPUT = 125, /* PSP refused it on the way in */
	KERNEL_DROP_PSP_OUTPUT = 126, /* PSP refused it on the way out */
	KERNEL_DROP_RECURSION_LIMIT = 127, /* Too many devices in a row */
};
/* clang-format on */

#endif
