"""What a flow must say about an event, written plainly, one event at a time.

The oracle for decoding and encoding: it reads the event's fields and dictionaries of names, and
follows Hubble's rules in their own order, with no columns, rows or caches.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilium.metadata.v1 import metadata_pb2
from cilium_core import abi
from flow import flow_pb2
from google.protobuf.wrappers_pb2 import StringValue
from hubble_server.facts import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence


_FILES = {
    1: "bpf_host.c",
    2: "bpf_lxc.c",
    3: "bpf_overlay.c",
    4: "bpf_xdp.c",
    5: "bpf_sock.c",
    6: "bpf_netdev.c",
    104: "policy.h",
    109: "endpoints.h",
}
_ICMPV4 = {0: "EchoReply", 8: "EchoRequest"}
_UNREACHABLE = ["Net", "Host", "Protocol", "Port"]


def flag(event: Any, name: str) -> bool:
    return bool(int(event["flags"]) & abi.constants[f"EVENT_{name}"])


@dataclass
class Names:
    """What an agent said, by its keys."""

    endpoints: dict[str, metadata_pb2.Endpoint] = field(default_factory=dict)
    identities: dict[int, list[str]] = field(default_factory=dict)
    interfaces: dict[int, str] = field(default_factory=dict)
    rules: dict[int, metadata_pb2.Rules] = field(default_factory=dict)
    node: metadata_pb2.LocalNode | None = None

    @classmethod
    def of(cls, updates: Sequence[metadata_pb2.Update]) -> Names:
        names = cls()
        for update in updates:
            match update.WhichOneof("update"):
                case "endpoint":
                    for ip in update.endpoint.ips:
                        names.endpoints[ip] = update.endpoint
                case "identity":
                    names.identities[update.identity.id] = sorted(update.identity.labels)
                case "interface":
                    names.interfaces[update.interface.index] = update.interface.name
                case "rules":
                    names.rules[update.rules.cookie] = update.rules
                case "local_node":
                    names.node = update.local_node
        return names


def address(raw: Any, *, ipv6: bool) -> str:
    data = bytes(raw)
    return str(ipaddress.ip_address(data if ipv6 else data[:4]))


def big_endian(value: Any) -> int:
    return int.from_bytes(int(value).to_bytes(2, "little"), "big")


def flow_of(event: Any, names: Names) -> flow_pb2.Flow:
    """The flow of an event, but for its time and uuid."""
    kind, six = int(event["type"]), flag(event, "IPV6")
    flow = flow_pb2.Flow(Type=flow_pb2.SOCK if kind == 7 else flow_pb2.L3_L4)
    flow.emitter.name, flow.emitter.version = "Hubble", VERSION
    assert names.node is not None
    flow.node_name = names.node.name
    flow.node_labels[:] = names.node.labels
    subtype = 0 if kind == 5 else int(event["subtype"])
    flow.event_type.type, flow.event_type.sub_type = kind, subtype

    if kind == 7:
        return _socket_flow(flow, event, names)
    source = address(event["saddr"], ipv6=six)
    original = address(event["orig_saddr"], ipv6=six)
    translated = ""
    has_original = kind == 4 and any(bytes(event["orig_saddr"]))
    if has_original and original != source:
        source, translated = original, source
    destination = address(event["daddr"], ipv6=six)
    if flag(event, "L3"):
        flow.IP.source, flow.IP.destination = source, destination
        flow.IP.source_xlated = translated
        flow.IP.ipVersion = flow_pb2.IPv6 if six else flow_pb2.IPv4
    if flag(event, "ETHERNET"):
        flow.ethernet.source = bytes(event["smac"]).hex(":")
        flow.ethernet.destination = bytes(event["dmac"]).hex(":")
    if flag(event, "L4"):
        _l4(flow, event)
    _end(flow.source, source, int(event["src_identity"]), names)
    _end(flow.destination, destination, int(event["dst_identity"]), names)
    _outcome(flow, event, kind, subtype, has_original)
    if kind == 5:
        _rules(flow, event, names)
    if kind in (3, 4) and event["ifindex"]:
        flow.interface.index = int(event["ifindex"])
        flow.interface.name = names.interfaces.get(int(event["ifindex"]), "")
    if kind == 1 and event["file"]:
        number = int(event["file"])
        flow.file.name = _FILES.get(number, f"unknown({number})")
        flow.file.line = int(event["line"])
    if flag(event, "TUNNEL"):
        _tunnel(flow, event, kind, subtype, names)
    if event["packets"] and not (kind == 1 and int(event["file"]) == 5):
        text = f'{{"bytes":{event["bytes"]},"packets":{event["packets"]}}}'
        flow.extensions.Pack(StringValue(value=text))
    flow.Summary = _summary(event)
    if kind == 1 and int(event["file"]) == 5:
        # refused at a socket, before there was a packet
        flow.Summary = {6: "TCP", 17: "UDP"}.get(int(event["proto"]), "Unknown")
        match flow.l4.WhichOneof("protocol"):
            case "TCP":
                flow.l4.TCP.ClearField("flags")
            case "SCTP":
                flow.l4.SCTP.ClearField("chunk_type")
    return flow


SCTP_CHUNKS = {
    1: flow_pb2.INIT,
    2: flow_pb2.INIT_ACK,
    6: flow_pb2.ABORT,
    7: flow_pb2.SHUTDOWN,
    8: flow_pb2.SHUTDOWN_ACK,
    14: flow_pb2.SHUTDOWN_COMPLETE,
}


def _l4(flow: flow_pb2.Flow, event: Any) -> None:
    first, second = big_endian(event["sport"]), big_endian(event["dport"])
    match int(event["proto"]):
        case 6:
            flow.l4.TCP.source_port, flow.l4.TCP.destination_port = first, second
            flow.l4.TCP.flags.SetInParent()
            bits = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
            for number, name in enumerate(bits):
                setattr(flow.l4.TCP.flags, name, bool(int(event["tcp_flags"]) >> number & 1))
        case 17:
            flow.l4.UDP.source_port, flow.l4.UDP.destination_port = first, second
            flow.l4.UDP.SetInParent()
        case 132:
            flow.l4.SCTP.source_port, flow.l4.SCTP.destination_port = first, second
            flow.l4.SCTP.chunk_type = SCTP_CHUNKS.get(int(event["tcp_flags"]), flow_pb2.UNSUPPORTED)
            flow.l4.SCTP.SetInParent()
        case 1:
            flow.l4.ICMPv4.type, flow.l4.ICMPv4.code = first, second
            flow.l4.ICMPv4.SetInParent()
        case 58:
            flow.l4.ICMPv6.type, flow.l4.ICMPv6.code = first, second
            flow.l4.ICMPv6.SetInParent()


def _socket_flow(flow: flow_pb2.Flow, event: Any, names: Names) -> flow_pb2.Flow:
    """Complete the flow of a translation at a socket of a pod."""
    six, point = flag(event, "IPV6"), int(event["subtype"])
    (pod,) = (
        ip
        for ip, endpoint in names.endpoints.items()
        if endpoint.id == int(event["endpoint"]) and (":" in ip) == six
    )
    source, destination = pod, address(event["daddr"], ipv6=six)
    source_port, destination_port = 0, big_endian(event["dport"])
    if point in (3, 4):
        source, destination = destination, source
        source_port, destination_port = destination_port, source_port
    if flag(event, "L3"):
        flow.IP.source, flow.IP.destination = source, destination
        flow.IP.ipVersion = flow_pb2.IPv6 if six else flow_pb2.IPv4
    transport = {6: flow.l4.TCP, 17: flow.l4.UDP}.get(int(event["proto"]))
    if transport is not None and flag(event, "L4"):
        transport.source_port, transport.destination_port = source_port, destination_port
        transport.SetInParent()
    _end(flow.source, source, 0, names)
    _end(flow.destination, destination, 0, names)
    flow.sock_xlate_point = point
    flow.verdict = flow_pb2.TRACED if point in (1, 3) else flow_pb2.TRANSLATED
    original = bytes(event["orig_saddr"])
    flow.socket_cookie = int.from_bytes(original[:8], "little")
    flow.cgroup_id = int.from_bytes(original[8:], "little")
    flow.Summary = {6: "TCP", 17: "UDP"}.get(int(event["proto"]), "Unknown")
    return flow


def _end(end: flow_pb2.Endpoint, ip: str, identity: int, names: Names) -> None:
    end.SetInParent()
    local = names.endpoints.get(ip)
    if local is not None:
        end.ID, end.namespace, end.pod_name = local.id, local.namespace, local.pod_name
        end.workloads.MergeFrom(local.workloads)
    end.identity = identity or (local.identity if local is not None else 0)
    reserved = {1: ["reserved:host"], 2: ["reserved:world"]}
    end.labels[:] = names.identities.get(end.identity, reserved.get(end.identity, []))
    for label in end.labels:
        if label.startswith("k8s:io.cilium.k8s.policy.cluster="):
            end.cluster_name = label.partition("=")[2]


def _outcome(flow: flow_pb2.Flow, event: Any, kind: int, subtype: int, has_original: bool) -> None:
    local = int(event["endpoint"])
    is_source = local == flow.source.ID
    match kind:
        case 1:
            flow.verdict = flow_pb2.DROPPED
            flow.drop_reason = subtype
            if local:
                flow.traffic_direction = flow_pb2.EGRESS if is_source else flow_pb2.INGRESS
        case 4:
            flow.verdict = flow_pb2.FORWARDED
            flow.trace_observation_point = subtype or flow_pb2.TO_ENDPOINT
            reason = int(event["reason"])
            flow.trace_reason = reason + 1 if reason < 5 else 0 if reason == 5 else reason
            if reason < 5:
                is_reply = reason == 2
                flow.is_reply.value = is_reply
                flow.reply = is_reply
                if local:
                    outward = is_source != is_reply or has_original
                    flow.traffic_direction = flow_pb2.EGRESS if outward else flow_pb2.INGRESS
            if subtype == 1:
                flow.proxy_port = int(event["dst_id"])
        case 5:
            verdict = int(event["verdict"])
            if verdict < 0:
                flow.verdict, flow.drop_reason = flow_pb2.DROPPED, -verdict
            else:
                flow.is_reply.value = False
                passed = flow_pb2.REDIRECTED if verdict else flow_pb2.FORWARDED
                flow.verdict = flow_pb2.AUDIT if flag(event, "AUDITED") else passed
            flow.policy_match_type = int(event["match"])
            if flag(event, "INGRESS"):
                flow.traffic_direction = flow_pb2.INGRESS
            elif flag(event, "EGRESS"):
                flow.traffic_direction = flow_pb2.EGRESS
        case 3:
            flow.debug_capture_point = subtype
    if flow.drop_reason in flow_pb2.DropReason.values():
        flow.drop_reason_desc = flow.drop_reason


def _rules(flow: flow_pb2.Flow, event: Any, names: Names) -> None:
    rules = names.rules.get(int(event["cookie"]))
    told = flow.verdict != flow_pb2.DROPPED or flow.drop_reason in (133, 181)
    if rules is None or not told:
        return
    direction = "egress" if flow.traffic_direction == flow_pb2.EGRESS else "ingress"
    refused = flow.verdict in (flow_pb2.DROPPED, flow_pb2.AUDIT)
    outcome = "denied_by" if refused else "allowed_by"
    getattr(flow, f"{direction}_{outcome}").MergeFrom(rules.policies)
    flow.policy_log[:] = dict.fromkeys(rules.log)


def _tunnel(flow: flow_pb2.Flow, event: Any, kind: int, subtype: int, names: Names) -> None:
    assert names.node is not None
    own = names.node.addresses[0]
    peer = str(ipaddress.IPv4Address(int(event["tunnel_peer"]).to_bytes(4, "little")))
    outward = kind == 4 and subtype == 4
    flow.tunnel.protocol = flow_pb2.Tunnel.VXLAN
    flow.tunnel.IP.source, flow.tunnel.IP.destination = (own, peer) if outward else (peer, own)
    flow.tunnel.IP.ipVersion = flow_pb2.IPv4
    flow.tunnel.l4.UDP.destination_port = 8472
    flow.tunnel.vni = 6 if flow.source.identity == 1 else flow.source.identity


def _summary(event: Any) -> str:
    if not flag(event, "L3"):
        return "Ethernet"
    protocol, ip = int(event["proto"]), "IPv6" if flag(event, "IPV6") else "IPv4"
    if not flag(event, "L4"):
        return ip
    first, second = big_endian(event["sport"]), big_endian(event["dport"])
    if protocol == 6:
        order = (("SYN", 2), ("ACK", 16), ("RST", 4), ("FIN", 1), ("PSH", 8), ("URG", 32))
        order += (("ECE", 64), ("CWR", 128))
        names = [name for name, bit in order if int(event["tcp_flags"]) & bit]
        return "TCP Flags: " + ", ".join(names)
    if protocol == 1:
        if first == 3:
            code = _UNREACHABLE + ["-"] * 5 + ["NetAdminProhibited"]
            return f"ICMPv4 DestinationUnreachable({code[second]})"
        name = _ICMPV4.get(first)
        if name is None:
            return f"ICMPv4 {first}({second})"
        return f"ICMPv4 {name}" if not second else f"ICMPv4 {name}(Code: {second})"
    if protocol == 58:
        if first == 3:
            return "ICMPv6 TimeExceeded" + (
                "(HopLimitExceeded)" if not second else f"(Code: {second})"
            )
        if first == 129:
            return "ICMPv6 EchoReply" + (f"(Code: {second})" if second else "")
        return f"ICMPv6 {first}({second})"
    return {17: "UDP", 132: "SCTP"}.get(protocol, ip)
