"""What drop reasons mean, and what can be done: more words than the list in `drop_reasons.h` has.

The one table for `hubble why`, wherever the flow comes from: it has the reasons of our own programs
and those that only other Hubble servers tell. What the kernel drops has a table of its own.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.drops import DropReason, kernel_drops

if TYPE_CHECKING:
    from collections.abc import Mapping


class Meaning(NamedTuple):
    """A drop reason in words; `remedy` is empty where nothing needs to be done."""

    text: str
    remedy: str = ""


_POLICY_REMEDY = (
    "If the traffic is wanted, apply a policy that allows it, such as the one suggested; else "
    "nothing needs to be done."
)
_BROKEN = "Look at the sender: it makes packets that no network stack should."
_PARTIAL = "If it goes on, look for a device or an offload on the way that cuts packets short."
_RESTART = (
    "Wait for the agent to become ready (`cilium status`); if it stays so, restart the agent, "
    "which loads its programs anew."
)
_ICMP = "Nothing, unless an application sends it on purpose; such messages are not forwarded."
_NAT = "See how full the table is with `cilium bpf nat list`; add node addresses or ports."
_FAMILY = "See whether the sender and the receiver use the address family they are meant to."
_ELSEWHERE = "This is a feature of other data planes; see the documentation of the node's own."
_UNSUPPORTED = "Use a protocol that the cluster forwards: TCP, UDP, SCTP or ICMP."
_FRAGMENTS = "Let the sender keep below the MTU, as path MTU discovery does."

_BY_NAME: Final[dict[str, Meaning]] = {
    "INVALID_SOURCE_MAC": Meaning("The sender's Ethernet address is not that of its pod.", _BROKEN),
    "INVALID_DESTINATION_MAC": Meaning(
        "The packet is addressed to the Ethernet address of nobody here.", _BROKEN
    ),
    "INVALID_SOURCE_IP": Meaning(
        "The source address is not the one that this sender has: it is spoofed, or comes from "
        "where it cannot.",
        "Let the pod send from its own address; a pod that routes for others cannot do so here.",
    ),
    "POLICY_DENIED": Meaning(
        "Policies are enforced at this end, and no rule allows the traffic (default deny).",
        _POLICY_REMEDY,
    ),
    "POLICY_DENY": Meaning(
        "A deny rule of a policy matches. It wins over every rule that allows.",
        "If the traffic is wanted, take the deny rule away or narrow it; no allow rule helps.",
    ),
    "INVALID_PACKET_DROPPED": Meaning(
        "The packet's headers contradict each other or are cut off.", _PARTIAL
    ),
    "CT_TRUNCATED_OR_INVALID_HEADER": Meaning(
        "The transport header is missing or cut off, so no connection can be told.", _PARTIAL
    ),
    "CT_MISSING_TCP_ACK_FLAG": Meaning(
        "The packet is larger than what lies ahead lets pass, and may not be cut.",
        "Use the same MTU on the way, or one that leaves room for the tunnel's headers.",
    ),
    "CT_UNKNOWN_L4_PROTOCOL": Meaning(
        "Connections of this transport protocol cannot be tracked.", _UNSUPPORTED
    ),
    "CT_CANNOT_CREATE_ENTRY_FROM_PACKET": Meaning(
        "The packet belongs to no known connection and cannot begin one.",
        "Nothing, if it follows a restart or a connection that was idle for long.",
    ),
    "UNSUPPORTED_L3_PROTOCOL": Meaning("It is neither IPv4 nor IPv6, or one that is off.", _FAMILY),
    "MISSED_TAIL_CALL": Meaning(
        "A part of the eBPF programs was not there, as they were just being replaced.", _RESTART
    ),
    "ERROR_WRITING_TO_PACKET": Meaning(
        "The kernel refused a change of the packet's headers, mostly for lack of memory.",
        "Look at the node's free memory and at the kernel's log.",
    ),
    "UNKNOWN_L4_PROTOCOL": Meaning("The transport protocol is not forwarded.", _UNSUPPORTED),
    "UNKNOWN_ICMPV4_CODE": Meaning("An ICMP message with a code that does not exist.", _BROKEN),
    "UNKNOWN_ICMPV4_TYPE": Meaning("An ICMP message of a type that is not forwarded.", _ICMP),
    "UNKNOWN_ICMPV6_CODE": Meaning("An ICMPv6 message with a code that does not exist.", _BROKEN),
    "UNKNOWN_ICMPV6_TYPE": Meaning("An ICMPv6 message of a type that is not forwarded.", _ICMP),
    "ERROR_RETRIEVING_TUNNEL_KEY": Meaning(
        "A packet out of the tunnel came without the key that says whose it is.",
        "See that nothing but the nodes of the cluster sends to the tunnel's port.",
    ),
    "ERROR_RETRIEVING_TUNNEL_OPTIONS": Meaning(
        "A packet out of the tunnel came without the options that it needs.",
        "Use the same tunnel protocol and options on all nodes.",
    ),
    "INVALID_GENEVE_OPTION": Meaning(
        "An option of the tunnel's header makes no sense.",
        "Use the same tunnel protocol and options on all nodes.",
    ),
    "UNKNOWN_L3_TARGET_ADDRESS": Meaning(
        "The destination is no address that a packet can be sent to from there: multicast, "
        "broadcast, link-local, or one that is no longer the pod's.",
        "See which address the application was told to use.",
    ),
    "STALE_OR_UNROUTABLE_IP": Meaning(
        "The destination is none of this node's pods any more: it is gone, or another node's "
        "view is old.",
        "Nothing, if the pod was just deleted; else compare `cilium ip list` on both nodes.",
    ),
    "NO_MATCHING_LOCAL_CONTAINER_FOUND": Meaning(
        "No pod of this node has the destination address.",
        "Nothing, if the pod was just deleted; else compare `cilium ip list` on both nodes.",
    ),
    "ERROR_WHILE_CORRECTING_L3_CHECKSUM": Meaning(
        "The kernel refused to correct the checksum of the IP header.", _PARTIAL
    ),
    "ERROR_WHILE_CORRECTING_L4_CHECKSUM": Meaning(
        "The kernel refused to correct the checksum of the transport header.", _PARTIAL
    ),
    "CT_MAP_INSERTION_FAILED": Meaning(
        "The table of connections is full, and this would have been a new one.",
        "Look for who opens so many connections (`hubble top`), or make the table larger "
        "(bpf-ct-global-tcp-max, bpf-ct-global-any-max).",
    ),
    "INVALID_IPV6_EXTENSION_HEADER": Meaning(
        "The chain of IPv6 extension headers is broken, or longer than what is read.", _BROKEN
    ),
    "IP_FRAGMENTATION_NOT_SUPPORTED": Meaning(
        "The packet is a fragment, and fragments are not taken here.", _FRAGMENTS
    ),
    "SERVICE_BACKEND_NOT_FOUND": Meaning(
        "The address is a service's, and no backend of it may serve this client.",
        "See that pods match the service's selector and are ready, and that its traffic policy "
        "has one where the client may reach it: `cilium service explain ADDRESS:PORT`.",
    ),
    "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT": Meaning(
        "The destination is on another node, and there is no tunnel to that node.",
        "See that both nodes know each other: `cilium node list`.",
    ),
    "FAILED_TO_INSERT_INTO_PROXYMAP": Meaning(
        "The packet would have to change between IPv4 and IPv6, and that is off.", _FAMILY
    ),
    "REACHED_EDT_RATE_LIMITING_DROP_HORIZON": Meaning(
        "The pod sends faster than its bandwidth limit, and too much waits already.",
        "Raise the pod's limit (kubernetes.io/egress-bandwidth), or send less.",
    ),
    "UNKNOWN_CONNECTION_TRACKING_STATE": Meaning(
        "The entry of the connection is in a state that makes no sense.", _RESTART
    ),
    "LOCAL_HOST_IS_UNREACHABLE": Meaning("The node itself cannot be reached from there.", _RESTART),
    "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION": Meaning(
        "The programs have no policies for this end yet.", _RESTART
    ),
    "UNSUPPORTED_L2_PROTOCOL": Meaning(
        "It is neither IP nor ARP, so it does not leave the pod.", _UNSUPPORTED
    ),
    "NO_MAPPING_FOR_NAT_MASQUERADE": Meaning(
        "No port is free to translate the connection with, or an answer belongs to no "
        "translation that is known.",
        _NAT,
    ),
    "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE": Meaning(
        "Traffic of this protocol cannot leave with the node's address.",
        "Use TCP, UDP, SCTP or ICMP, or route the pods' addresses outside.",
    ),
    "FIB_LOOKUP_FAILED": Meaning(
        "The node has no route to the destination, or one that says it is unreachable.",
        "Look at `ip route get ADDRESS` on the node.",
    ),
    "ENCAPSULATION_TRAFFIC_IS_PROHIBITED": Meaning(
        "A pod sent packets that look like the cluster's own tunnel.",
        "Let the pod use another port for a tunnel of its own.",
    ),
    "INVALID_IDENTITY": Meaning(
        "The identity that came along, or would have to, is none that nodes tell each other.",
        "See that nothing but the nodes of the cluster sends to the tunnel's port.",
    ),
    "UNKNOWN_SENDER": Meaning("The identity of the sender is not known.", _RESTART),
    "NAT_NOT_NEEDED": Meaning("The packet needed no translation and was given up.", _RESTART),
    "IS_A_CLUSTERIP": Meaning(
        "A cluster-internal service address was asked from outside.",
        "Ask a node port or a load balancer's address, or set bpf-lb-external-clusterip.",
    ),
    "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND": Meaning(
        "A fragment came before the first one of its packet, which has the ports.", _FRAGMENTS
    ),
    "FORBIDDEN_ICMPV6_MESSAGE": Meaning(
        "An ICMPv6 control message that pods and networks may not send through: it could "
        "redirect the traffic of others.",
        _ICMP,
    ),
    "DENIED_BY_LB_SRC_RANGE_CHECK": Meaning(
        "The service says who may ask it (loadBalancerSourceRanges), and this client may not.",
        "Add the client's prefix to spec.loadBalancerSourceRanges of the service.",
    ),
    "SOCKET_LOOKUP_FAILED": Meaning(
        "The connection is to go to a proxy, and the proxy does not listen.",
        "Look at the proxies in `cilium status`; connections that need them wait until then.",
    ),
    "SOCKET_ASSIGN_FAILED": Meaning(
        "The kernel refused to hand the connection to the proxy.",
        "Look at the proxies in `cilium status`, and at the kernel's log.",
    ),
    "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL": Meaning(
        "A rule sends the traffic to a proxy, and proxies take TCP and UDP only.",
        "Name TCP or UDP in the rule that has requests.",
    ),
    "VLAN_FILTERED": Meaning(
        "The frame has a VLAN tag, which pods may not send.", "Send it without a tag."
    ),
    "INVALID_VNI": Meaning("The tunnel's network number is not the one agreed on.", _ELSEWHERE),
    "INVALID_TC_BUFFER": Meaning(
        "What one part of the programs left for the next was not there.", _RESTART
    ),
    "NO_SID": Meaning("No segment routing id is known for the address.", _ELSEWHERE),
    "MISSING_SRV6_STATE": Meaning("State of segment routing got lost on the way.", _ELSEWHERE),
    "NAT46": Meaning("The packet could not be made IPv6.", _FAMILY),
    "NAT64": Meaning("The packet could not be made IPv4.", _FAMILY),
    "AUTH_REQUIRED": Meaning(
        "The policy wants both ends to authenticate, and they have not yet.",
        "See that the authentication service runs; the next packets may pass.",
    ),
    "CT_NO_MAP_FOUND": Meaning("The table of connections is not there.", _RESTART),
    "SNAT_NO_MAP_FOUND": Meaning("The table of translations is not there.", _RESTART),
    "INVALID_CLUSTER_ID": Meaning(
        "The packet names a cluster that cannot be.",
        "Give each connected cluster an id of its own.",
    ),
    "UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP": Meaning(
        "Answers of this protocol cannot go straight from another node to the client.",
        "Use forwarding by SNAT for the service (service.cilium.io/forwarding-mode: snat).",
    ),
    "NO_EGRESS_GATEWAY": Meaning(
        "The traffic is to leave through a gateway, and there is none.",
        "See that a node matches the selector of the egress gateway policy.",
    ),
    "UNENCRYPTED_TRAFFIC": Meaning(
        "Traffic has to be encrypted, and this was not.",
        "See that encryption is on and ready on both nodes.",
    ),
    "TTL_EXCEEDED": Meaning(
        "The packet passed too many hops: a loop, or a tool such as traceroute.",
        "Nothing for traceroute; else look for routes that point at each other.",
    ),
    "NO_NODE_ID": Meaning("The other node has no number yet.", _RESTART),
    "RATE_LIMITED": Meaning(
        "The sender is over a rate limit that was set for its address.",
        "See `cilium prefilter get` for the limit, or let it send less.",
    ),
    "IGMP_HANDLED": Meaning("A multicast message was answered in place of being forwarded."),
    "IGMP_SUBSCRIBED": Meaning("A multicast subscription was taken in place of being forwarded."),
    "MULTICAST_HANDLED": Meaning(
        "A multicast message was answered or served in place of being forwarded."
    ),
    "HOST_NOT_READY": Meaning("The node's own policies are not in place yet.", _RESTART),
    "EP_NOT_READY": Meaning("The pod is new, and its policies are not in place yet.", _RESTART),
    "NO_EGRESS_IP": Meaning(
        "The gateway that the traffic leaves through has no address for it.",
        "Set the interface or egressIP of the egress gateway policy to one that the node has.",
    ),
    "PUNT_PROXY": Meaning("The packet was handed to a proxy; nothing is lost."),
    "KERNEL": Meaning(
        "The kernel dropped it, past the programs of the data plane.",
        "The flow's summary and file name the kernel's reason.",
    ),
}

_READ_FASTER = "Let the application read faster, or give the socket a larger receive buffer."
_KERNEL_REMEDIES: Final[dict[str, str]] = {
    "NO_SOCKET": "See that the application runs, and listens at this address and port.",
    "SOCKET_RCVBUFF": _READ_FASTER,
    "SOCKET_BACKLOG": _READ_FASTER,
    "PROTO_MEM": "Raise net.ipv4.tcp_mem or udp_mem, or find who holds so much in sockets.",
    "NETFILTER_DROP": "Look for the rule with `nft list ruleset` or `iptables -vnL` in the "
    "namespace of the pod or of the node.",
    "IP_RPFILTER": "Set net.ipv4.conf.*.rp_filter to 0 or 2 where traffic comes another way than "
    "it goes.",
    "TCP_LISTEN_OVERFLOW": "Let the application accept faster, or raise the backlog of its "
    "listen() and net.core.somaxconn.",
    "IP_OUTNOROUTES": "See `ip route get` for the destination, in the sender's namespace.",
    "IP_INNOROUTES": "See `ip route get` for the destination, where the packet came in.",
    "NEIGH_FAILED": "See that the next hop is up and answers ARP or neighbour discovery.",
    "QDISC_DROP": "The device is slower than what it is sent; see `tc -s qdisc show`.",
    "QDISC_OVERLIMIT": "The device is slower than what it is sent; see `tc -s qdisc show`.",
    "CPU_BACKLOG": "Raise net.core.netdev_max_backlog, or spread the load over processors (RPS).",
    "FULL_RING": "Raise the device's ring with `ethtool -G`.",
    "PKT_TOO_BIG": "Make the MTU of all devices on the way alike, tunnels' overhead included.",
}


def meaning_of_kernel(name: str) -> Meaning:
    """The meaning of one of the kernel's own reasons, by its name; of none that is not known."""
    known = {each.name: each.text for each in kernel_drops.values()}
    return Meaning(
        f"The kernel dropped it: {known.get(name, name)}.", _KERNEL_REMEDIES.get(name, "")
    )


MEANINGS: Final[Mapping[int, Meaning]] = MappingProxyType(
    {int(DropReason[name]): meaning for name, meaning in _BY_NAME.items()}
)
"""By drop code."""

_OTHER: Final = Meaning(
    "This reason is not in the list of this program.",
    "A newer program may know it; the source position tells where it happened.",
)


def meaning_of(code: int) -> Meaning:
    """The meaning of a drop code; of one that is not in the list, that it is not."""
    return MEANINGS.get(code, _OTHER)
