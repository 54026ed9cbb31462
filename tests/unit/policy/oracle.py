"""A brute-force reading of policy objects, to compare the engine with.

It evaluates the objects as written, for one packet at a time, by asking each list item whether it
concerns the packet. It shares no code and no intermediate form with the engine, keeps no state, and
makes no attempt to be fast. Labels are `{key: (source, value)}`.

`judge` says everything about a packet, requests above the transport layer included, `passes` only
whether it passes. Rules of one endpoint that contradict each other are for nobody to judge.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Any

from tests.unit.policy import oracle_requests

Labels = dict[str, tuple[str, str]]

NS = "io.kubernetes.pod.namespace"
CLUSTER = "io.cilium.k8s.policy.cluster"
NS_LABEL = "io.cilium.k8s.namespace.labels."
PROTOCOLS = {"TCP": [6], "UDP": [17], "SCTP": [132], "ANY": [6, 17, 132]}
IN_CLUSTER = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
AUDIT = "policy.cilium.io/audit-mode"
ICMP_NAMES = {("IPv4", "EchoRequest"): 8, ("IPv4", "EchoReply"): 0, ("IPv6", "EchoRequest"): 128}


@dataclass(frozen=True)
class Party:
    """One end of a connection: a pod, a node, or an address outside (then `address` is set).

    `names` are the DNS names that are known to stand for the address.
    """

    labels: Labels = field(hash=False)
    address: str | None = None
    ports: tuple[tuple[str, int, int], ...] = ()  # name, protocol, number
    names: tuple[str, ...] = ()


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
    host_firewall: bool = False
    pods: tuple[Party, ...] = ()
    services: tuple[dict[str, Any], ...] = ()  # Service and EndpointSlice objects
    audited_namespaces: tuple[str, ...] = ()
    groups: tuple[dict[str, Any], ...] = ()


ADMIN, NORMAL, BASELINE = range(3)


@dataclass(frozen=True)
class Reading:
    """What one list item says about a packet; `verdict` None when it is not concerned."""

    closes: bool
    verdict: str | None  # "allow", "deny" or "pass"
    l7: dict[str, Any] | None = None  # the item of toPorts, if it asks something of requests
    exact: bool = False  # names the port of the packet and no other
    tier: int = NORMAL
    rank: tuple[int, ...] = ()
    audited: bool = False


@dataclass(frozen=True)
class Weighed:
    """What some readings say together; `allowing` are those behind an allowance by a proxy."""

    passes: bool
    allowing: tuple[Reading, ...] = ()
    observed: bool = False  # no rule closes the direction, so that requests are only reported

    @property
    def proxy(self) -> str | None:
        """What a proxy must be able to read, if one has to look at all."""
        kinds = {oracle_requests.kind_of(one.l7) for one in self.allowing if one.l7 is not None}
        return next((kind for kind in ("http", "kafka", "tls", "dns") if kind in kinds), None)

    def request(self, request: dict[str, Any]) -> bool:
        """Whether a request, of the kind that the proxy reads, passes."""
        if not self.passes or self.proxy is None or self.observed:
            return self.passes
        rules = [(one.l7, one.exact) for one in self.allowing]
        return oracle_requests.passes(rules, self.proxy, request)


@dataclass(frozen=True)
class Opinion:
    """What becomes of a packet: by what is enforced, and by what audited rules would add."""

    enforced: Weighed
    told: Weighed

    @property
    def passes(self) -> bool:
        return self.enforced.passes

    @property
    def audited(self) -> bool:
        """Whether the packet passes and is reported as refused."""
        return self.enforced.passes and not self.told.passes

    def request(self, request: dict[str, Any]) -> bool:
        """Whether a request on the connection passes."""
        return self.enforced.request(request)

    def reports(self, request: dict[str, Any]) -> bool:
        """Whether a request on the connection passes and is reported as refused."""
        if self.audited or self.told.proxy != request["kind"]:
            return False
        return self.enforced.request(request) and not self.told.request(request)


def passes(objects: list[dict[str, Any]], subject: Party, packet: Packet, setting: Setting) -> bool:
    """Whether the policies let the subject's packet through in its direction."""
    return judge(objects, subject, packet, setting).passes


def judge(
    objects: list[dict[str, Any]], subject: Party, packet: Packet, setting: Setting
) -> Opinion:
    """What becomes of the subject's packet in its direction."""
    host = subject.labels.get("host") == ("reserved", "")
    if setting.mode == "never" or (host and not setting.host_firewall):
        return Opinion(Weighed(True), Weighed(True))
    groups = tuple(obj for obj in objects if obj["kind"] == "CiliumCIDRGroup")
    setting = replace(setting, groups=groups)
    readings: list[Reading] = []
    for obj in objects:
        if obj in groups:
            continue
        metadata = obj["metadata"]
        audited = (metadata.get("annotations") or {}).get(AUDIT) == "true"
        if obj["kind"] in ("CiliumNetworkPolicy", "NetworkPolicy"):
            audited |= metadata.get("namespace", "default") in setting.audited_namespaces
        found = READERS[obj["kind"]](obj, subject, packet, setting)
        readings += [replace(reading, audited=audited) for reading in found]
    told = weigh(readings, subject, packet, setting, bool(readings))
    plain = [reading for reading in readings if not reading.audited]
    return Opinion(weigh(plain, subject, packet, setting, bool(readings)), told)


def weigh(
    readings: list[Reading], subject: Party, packet: Packet, setting: Setting, selected: bool
) -> Weighed:
    """What readings say, tier by tier."""
    always = setting.mode == "always" or subject.labels.get("init") == ("reserved", "")
    isolated = any(reading.closes and reading.tier == NORMAL for reading in readings)
    is_host = subject.labels.get("host") == ("reserved", "")
    local = (
        packet.direction == "ingress"
        and setting.local_host
        and not is_host
        and "host" in packet.peer.labels
        and (always or selected)
    )
    for tier in (ADMIN, NORMAL, BASELINE):
        hits = [one for one in readings if one.tier == tier and one.verdict is not None]
        if hits:
            first = min(one.rank for one in hits)
            hits = [one for one in hits if one.rank == first]
        verdicts = {one.verdict for one in hits}
        if "deny" in verdicts:
            return Weighed(False)
        if tier == NORMAL and local:
            return Weighed(True)
        if "allow" in verdicts:
            allowing = tuple(one for one in hits if one.verdict == "allow")
            return Weighed(True, allowing, not isolated and not always)
        if tier == NORMAL and isolated:
            return Weighed(False)
    return Weighed(not always)


def read_cilium(obj, subject, packet, setting):
    """One reading for each item (and each element of its toPorts) that is about the subject."""
    namespace = obj["metadata"].get("namespace", "default")
    if obj["kind"] == "CiliumClusterwideNetworkPolicy":
        namespace = None
    for spec in [obj.get("spec"), *(obj.get("specs") or [])]:
        if spec is None or not is_about(spec, subject, namespace):
            continue
        closes = (spec.get("enableDefaultDeny") or {}).get(packet.direction)
        closes = True if closes is None else closes
        init = any("reserved:init" in key for key in keys_of(spec.get("endpointSelector") or {}))
        for suffix, verdict in (("", "allow"), ("Deny", "deny")):
            for item in spec.get(packet.direction + suffix) or []:
                yield Reading(closes, None)
                if not peers_match(item, packet, namespace, init, setting):
                    continue
                for l7, exact in ports_match(item, subject, packet, setting):
                    yield Reading(closes, verdict, l7, exact)


def is_about(spec, subject, namespace):
    if "nodeSelector" in spec:
        host = subject.labels.get("host") == ("reserved", "")
        return host and selects(spec["nodeSelector"], subject.labels)
    return subject_matches(spec["endpointSelector"], subject, namespace)


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
    if any(node_matches(one, labels, setting) for one in written.get("Nodes") or []):
        return True
    if any(service_covers(one, packet.peer, setting) for one in written.get("Services") or []):
        return True
    if any(name_covers(one, packet.peer) for one in written.get("FQDNs") or []):
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


def node_matches(selector, labels, setting):
    own = labels.get(CLUSTER) == ("k8s", setting.cluster)
    return "remote-node" in labels and own and selects(selector, labels)


def name_covers(written, party):
    if party.address is None:
        return False
    pattern = written.get("matchName") or written["matchPattern"]
    return any(oracle_requests.name_matches(pattern, name) for name in party.names)


def service_covers(written, party, setting):
    """Whether a party is behind one of the services that an item of toServices means."""
    for service in setting.services:
        if service["kind"] != "Service":
            continue
        metadata = service["metadata"]
        if "k8sService" in written:
            wanted = written["k8sService"]
            meant = metadata["name"] == wanted["serviceName"]
        else:
            wanted = written["k8sServiceSelector"]
            labels = {key: ("k8s", value) for key, value in (metadata.get("labels") or {}).items()}
            meant = selects(wanted["selector"], labels)
        if not meant or wanted.get("namespace", metadata["namespace"]) != metadata["namespace"]:
            continue
        chosen = service["spec"].get("selector")
        if chosen:
            labels = {**chosen, NS: metadata["namespace"], CLUSTER: setting.cluster}
            if all(party.labels.get(key) == ("k8s", value) for key, value in labels.items()):
                return True
        elif party.address is not None and party.address in backends(metadata, setting):
            return True
    return False


def backends(service, setting):
    for one in setting.services:
        metadata = one["metadata"]
        owner = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
        space = metadata["namespace"] == service["namespace"]
        if one["kind"] == "EndpointSlice" and owner == service["name"] and space:
            for endpoint in one["endpoints"]:
                yield from endpoint["addresses"]


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
    """For each element of toPorts that covers the packet: what it asks of requests, and whether it
    names this port and no other."""
    if item.get("icmps"):
        fields = [one for rule in item["icmps"] for one in rule.get("fields") or []]
        return [(None, False)] if any(icmp_matches(one, packet) for one in fields) else []
    if not item.get("toPorts"):
        return [(None, False)]
    found = []
    for rule in item["toPorts"]:
        l7 = rule if oracle_requests.kind_of(rule) else None
        spoken = oracle_requests.protocols(rule)
        exact = [
            port_names(port, subject, packet, setting)
            for port in rule.get("ports") or []
            if packet.protocol in PROTOCOLS[port.get("protocol", "ANY").upper()]
            and packet.protocol in spoken
        ]
        if any(one is not None for one in exact):
            found.append((l7, True in exact))
    return found


def port_names(port, subject, packet, setting):
    """True for exactly the packet's port, False for a range around it, None when it is another."""
    text = str(port["port"])
    if not text.isdigit():
        known = subject.ports if packet.direction == "ingress" else unambiguous(setting.pods)
        return True if (text.lower(), packet.protocol, packet.port) in known else None
    last = max(int(text), port.get("endPort") or 0)
    if int(text) == 0:
        return False
    if not int(text) <= packet.port <= last:
        return None
    return int(text) == last


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
    yield Reading(True, None)
    for item in spec.get(packet.direction) or []:
        peers = item.get("from" if packet.direction == "ingress" else "to")
        if peers and not any(
            kubernetes_peer(one, packet.peer, namespace, setting) for one in peers
        ):
            continue
        ports = item.get("ports")
        if not ports or any(kubernetes_port(one, subject, packet, setting) for one in ports):
            yield Reading(True, "allow", None, exact_kubernetes(ports, subject, packet, setting))


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


def exact_kubernetes(ports, subject, packet, setting):
    """Whether some port of a matching item is the packet's alone."""
    return any(
        kubernetes_port(one, subject, packet, setting)
        and (isinstance(one.get("port"), str) or one.get("port") == packet.port)
        and one.get("endPort", one.get("port")) == one.get("port")
        and one.get("port") is not None
        for one in ports or []
    )


# ---- tiered policies ----


def read_tiered(obj, subject, packet, setting):
    """One reading for each rule of a policy of policy.networking.k8s.io that has the subject."""
    spec = obj["spec"]
    if not tiered_pods(spec["subject"], subject.labels):
        return
    tier = BASELINE if obj["kind"] == "BaselineAdminNetworkPolicy" else ADMIN
    if obj["kind"] == "ClusterNetworkPolicy" and spec["tier"] == "Baseline":
        tier = BASELINE
    verdicts = {"Allow": "allow", "Accept": "allow", "Deny": "deny", "Pass": "pass"}
    for index, rule in enumerate(spec.get(packet.direction) or []):
        rank = (spec.get("priority", 0), index)
        peers = rule["from" if packet.direction == "ingress" else "to"]
        ports = rule.get("ports", rule.get("protocols"))
        hit = any(tiered_peer(one, packet.peer, setting) for one in peers) and (
            ports is None or any(tiered_port(one, subject, packet, setting) for one in ports)
        )
        yield Reading(False, verdicts[rule["action"]] if hit else None, tier=tier, rank=rank)


def tiered_pods(written, labels):
    if labels.get(NS, ("", ""))[0] != "k8s":
        return False
    pods = written.get("pods") or {}
    spaces = written.get("namespaces", pods.get("namespaceSelector")) or {}
    chosen = pods.get("podSelector") or {}
    return selects(spaces, labels, "k8s", NS_LABEL) and selects(chosen, labels, "k8s")


def tiered_peer(written, peer, setting):
    if "namespaces" in written or "pods" in written:
        own = peer.labels.get(CLUSTER) == ("k8s", setting.cluster)
        return own and tiered_pods(written, peer.labels)
    if "networks" in written:
        return any(inside(peer.address, cidr, []) for cidr in written["networks"])
    if "nodes" in written:
        node = {"host", "remote-node"} & {
            key for key, (source, _) in peer.labels.items() if source == "reserved"
        }
        return bool(node) and selects(written["nodes"], peer.labels)
    names = [name if name[0] != "*" else f"*{name}" for name in written["domainNames"]]
    return any(name_covers({"matchPattern": name}, peer) for name in names)


def tiered_port(written, subject, packet, setting):
    named = written.get("namedPort", written.get("destinationNamedPort"))
    if named is not None:
        alike = [pod for pod in setting.pods if pod.labels == packet.peer.labels]
        ends = [subject] if packet.direction == "ingress" else alike
        return any((named, packet.protocol, packet.port) in end.ports for end in ends)
    if "portNumber" in written:
        one = written["portNumber"]
        return (
            packet.protocol in PROTOCOLS[one.get("protocol", "TCP")] and packet.port == one["port"]
        )
    if "portRange" in written:
        one = written["portRange"]
        number = packet.protocol in PROTOCOLS[one.get("protocol", "TCP")]
        return number and one["start"] <= packet.port <= one["end"]
    for name in ("tcp", "udp", "sctp"):
        if name in written and packet.protocol in PROTOCOLS[name.upper()]:
            port = written[name].get("destinationPort")
            if port is None or port.get("number") == packet.port:
                return True
            between = port.get("range")
            return between is not None and between["start"] <= packet.port <= between["end"]
    return False


READERS = {
    "CiliumNetworkPolicy": read_cilium,
    "CiliumClusterwideNetworkPolicy": read_cilium,
    "NetworkPolicy": read_kubernetes,
    "AdminNetworkPolicy": read_tiered,
    "BaselineAdminNetworkPolicy": read_tiered,
    "ClusterNetworkPolicy": read_tiered,
}
