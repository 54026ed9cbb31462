"""A brute-force reading of policy objects, to compare the engine with.

It evaluates the objects as written, for one packet at a time, by asking each list item whether it
concerns the packet. It shares no code and no intermediate form with the engine, keeps no state, and
makes no attempt to be fast. Labels are `{key: (source, value)}`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Any

Labels = dict[str, tuple[str, str]]

NS = "io.kubernetes.pod.namespace"
CLUSTER = "io.cilium.k8s.policy.cluster"
NS_LABEL = "io.cilium.k8s.namespace.labels."
PROTOCOLS = {"TCP": [6], "UDP": [17], "SCTP": [132], "ANY": [6, 17, 132]}
IN_CLUSTER = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
ICMP_NAMES = {("IPv4", "EchoRequest"): 8, ("IPv4", "EchoReply"): 0, ("IPv6", "EchoRequest"): 128}


@dataclass(frozen=True)
class Party:
    """One end of a connection: a pod, a node, or an address outside (then `address` is set)."""

    labels: Labels = field(hash=False)
    address: str | None = None
    ports: tuple[tuple[str, int, int], ...] = ()  # name, protocol, number


@dataclass(frozen=True)
class Packet:
    direction: str  # "ingress" or "egress", seen from the subject
    peer: Party
    protocol: int
    port: int  # the ICMP type for ICMP


@dataclass(frozen=True)
class Setting:
    cluster: str = "default"
    dual_stack: bool = True
    mode: str = "default"
    local_host: bool = True
    pods: tuple[Party, ...] = ()
    groups: tuple[dict[str, Any], ...] = ()


def passes(objects: list[dict[str, Any]], subject: Party, packet: Packet, setting: Setting) -> bool:
    """Whether the policies let the subject's packet through in its direction."""
    if setting.mode == "never" or subject.labels.get("host") == ("reserved", ""):
        return True
    verdicts: list[str] = []
    selecting = 0
    closing = 0
    groups = tuple(obj for obj in objects if obj["kind"] == "CiliumCIDRGroup")
    setting = replace(setting, groups=groups)
    for obj in objects:
        if obj in groups:
            continue
        readings = read_kubernetes if obj["kind"] == "NetworkPolicy" else read_cilium
        for closes, verdict in readings(obj, subject, packet, setting):
            selecting += 1
            closing += closes
            if verdict:
                verdicts.append(verdict)
    if "deny" in verdicts:
        return False
    if "allow" in verdicts:
        return True
    always = setting.mode == "always" or subject.labels.get("init") == ("reserved", "")
    enforced = always or selecting > 0
    if not enforced:
        return True
    if packet.direction == "ingress" and setting.local_host and "host" in packet.peer.labels:
        return True
    return not always and closing == 0


def read_cilium(obj, subject, packet, setting):
    """For each item of the packet's direction that selects the subject: does it close, its
    verdict."""
    namespace = obj["metadata"].get("namespace", "default")
    if obj["kind"] == "CiliumClusterwideNetworkPolicy":
        namespace = None
    for spec in [obj.get("spec"), *(obj.get("specs") or [])]:
        if spec is None or not subject_matches(spec["endpointSelector"], subject, namespace):
            continue
        closes = (spec.get("enableDefaultDeny") or {}).get(packet.direction)
        closes = True if closes is None else closes
        init = any("reserved:init" in key for key in keys_of(spec["endpointSelector"]))
        for suffix, verdict in (("", "allow"), ("Deny", "deny")):
            for item in spec.get(packet.direction + suffix) or []:
                hit = peers_match(item, packet, namespace, init, setting) and ports_match(
                    item, subject, packet, setting
                )
                yield closes, verdict if hit else None


def keys_of(selector):
    return [
        *(selector.get("matchLabels") or {}),
        *(expression["key"] for expression in selector.get("matchExpressions") or []),
    ]


def subject_matches(selector, subject, namespace):
    if subject.labels.get("host") == ("reserved", ""):
        return False
    selector = dict(selector)
    if namespace is not None:
        if subject.labels.get(NS) != ("k8s", namespace):
            return False
        labels = dict(selector.get("matchLabels") or {})
        labels.pop(f"k8s:{NS}", None)
        selector["matchLabels"] = labels
    return selects(selector, subject.labels)


def selects(selector, labels, source=None, prefix=""):
    conditions = [
        (key, "In", [value]) for key, value in (selector.get("matchLabels") or {}).items()
    ]
    conditions += [
        (expression["key"], expression["operator"], expression.get("values") or [])
        for expression in selector.get("matchExpressions") or []
    ]
    for key, operator, values in conditions:
        wanted, _, name = key.rpartition(":") if source is None else (source, "", key)
        wanted = wanted or "any"
        found = labels.get(prefix + name)
        if found is not None and wanted not in ("any", found[0]):
            found = None
        if operator == "In" and (found is None or found[1] not in values):
            return False
        if operator == "NotIn" and found is not None and found[1] in values:
            return False
        if operator == "Exists" and found is None:
            return False
        if operator == "DoesNotExist" and found is not None:
            return False
    return True


def peers_match(item, packet, namespace, init, setting):
    word = "from" if packet.direction == "ingress" else "to"
    kinds = {
        name: item.get(word + name)
        for name in ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", "Groups")
    }
    kinds["FQDNs"] = item.get("toFQDNs")
    kinds["Services"] = item.get("toServices")
    written = {name: peers for name, peers in kinds.items() if peers is not None}
    if not written:
        return bool(item.get("toPorts") or item.get("icmps"))
    labels = packet.peer.labels
    for selector in written.get("Endpoints") or []:
        if not selects(selector, labels):
            continue
        keys = keys_of(selector)
        if any(key.startswith("reserved:") for key in keys):
            return True
        bare = [key.rpartition(":")[2] for key in keys if not key.startswith("other:")]
        names_namespace = NS in bare
        names_labels = any(key.startswith(NS_LABEL) for key in bare)
        space = labels.get(NS, ("", ""))
        if namespace is not None:
            fits = names_namespace or names_labels or space == ("k8s", namespace)
        else:
            fits = names_namespace or init or space[0] == "k8s"
        if not fits:
            continue
        if CLUSTER not in bare and labels.get(CLUSTER) != ("k8s", setting.cluster):
            continue
        return True
    if any(entity_covers(name, labels, setting) for name in written.get("Entities") or []):
        return True
    cidrs = [(text, []) for text in written.get("CIDR") or []]
    for rule in written.get("CIDRSet") or []:
        parts = rule.get("except") or []
        if "cidr" in rule:
            cidrs.append((rule["cidr"], parts))
        elif in_groups(rule, packet.peer.address, parts, setting.groups):
            return True
    return any(inside(packet.peer.address, cidr, parts) for cidr, parts in cidrs)


def in_groups(rule, address, excepts, groups):
    """Whether the groups around an address are among those that a rule means."""
    around = sorted(
        (ipaddress.ip_network(cidr).prefixlen, group["metadata"]["name"], group["metadata"])
        for group in groups
        for cidr in group["spec"]["externalCIDRs"]
        if inside(address, cidr, excepts)
    )
    if "cidrGroupRef" in rule:
        return any(name == rule["cidrGroupRef"] for _, name, _ in around)
    labels = {}
    for _, _, metadata in around:
        for key, value in metadata["labels"].items():
            labels[key] = ("cidrgroup", value)
    return bool(around) and selects(rule["cidrGroupSelector"], labels)


def entity_covers(name, labels, setting):
    reserved = {key for key, (source, _) in labels.items() if source == "reserved"}
    if name == "all":
        return True
    if name == "world":
        return bool(reserved & {"world", "world-ipv4", "world-ipv6"})
    if name == "cluster":
        return bool(reserved & set(IN_CLUSTER)) or labels.get(CLUSTER) == ("k8s", setting.cluster)
    return name in reserved


def inside(address, cidr, excepts):
    if address is None:
        return False
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network(cidr, strict=False) and not any(
        ip in ipaddress.ip_network(part, strict=False) for part in excepts
    )


def ports_match(item, subject, packet, setting):
    if item.get("icmps"):
        fields = [one for rule in item["icmps"] for one in rule.get("fields") or []]
        return any(icmp_matches(one, packet) for one in fields)
    if not item.get("toPorts"):
        return True
    for rule in item["toPorts"]:
        for port in rule.get("ports") or []:
            numbers = PROTOCOLS[port.get("protocol", "ANY").upper()]
            if packet.protocol not in numbers:
                continue
            text = str(port["port"])
            if not text.isdigit():
                known = (
                    subject.ports if packet.direction == "ingress" else unambiguous(setting.pods)
                )
                if (text.lower(), packet.protocol, packet.port) in known:
                    return True
            elif int(text) == 0 or int(text) <= packet.port <= max(
                int(text), port.get("endPort") or 0
            ):
                return True
    return False


def icmp_matches(written, packet):
    family = written.get("family", "IPv4")
    number = written["type"]
    number = ICMP_NAMES[family, number] if isinstance(number, str) else number
    return packet.protocol == {"IPv4": 1, "IPv6": 58}[family] and packet.port == number


def unambiguous(pods):
    """Named ports for which the whole cluster has one number."""
    ports = {port for pod in pods for port in pod.ports}
    return {
        port
        for port in ports
        if len({number for name, protocol, number in ports if (name, protocol) == port[:2]}) == 1
    }


def read_kubernetes(obj, subject, packet, setting):
    """As `read_cilium`, for NetworkPolicy; a closed direction without items yields one reading."""
    namespace = obj["metadata"].get("namespace", "default")
    spec = obj["spec"]
    if subject.labels.get(NS) != ("k8s", namespace):
        return
    if not selects(spec.get("podSelector") or {}, subject.labels, "k8s"):
        return
    types = spec.get("policyTypes") or ["Ingress"] + (["Egress"] if spec.get("egress") else [])
    if packet.direction.capitalize() not in types:
        return
    yield True, None
    for item in spec.get(packet.direction) or []:
        peers = item.get("from" if packet.direction == "ingress" else "to")
        if peers and not any(
            kubernetes_peer(one, packet.peer, namespace, setting) for one in peers
        ):
            continue
        ports = item.get("ports")
        if not ports or any(kubernetes_port(one, subject, packet, setting) for one in ports):
            yield True, "allow"


def kubernetes_peer(written, peer, namespace, setting):
    if "ipBlock" in written:
        block = written["ipBlock"]
        return inside(peer.address, block["cidr"], block.get("except") or [])
    if peer.labels.get(NS, ("", ""))[0] != "k8s" or peer.labels.get(CLUSTER) != (
        "k8s",
        setting.cluster,
    ):
        return False
    if written.get("namespaceSelector") is None:
        if peer.labels[NS][1] != namespace:
            return False
    elif not selects(written["namespaceSelector"], peer.labels, "k8s", NS_LABEL):
        return False
    return selects(written.get("podSelector") or {}, peer.labels, "k8s")


def kubernetes_port(written, subject, packet, setting):
    if packet.protocol not in PROTOCOLS[written.get("protocol", "TCP")]:
        return False
    port = written.get("port")
    if port is None:
        return True
    if isinstance(port, str):
        # Pods with equal labels are one identity, and cannot be told apart by their ports.
        alike = [pod for pod in setting.pods if pod.labels == packet.peer.labels]
        ends = [subject] if packet.direction == "ingress" else alike
        return any((port, packet.protocol, packet.port) in end.ports for end in ends)
    return port <= packet.port <= (written.get("endPort") or port)
