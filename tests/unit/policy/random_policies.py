"""Random policies of every kind over a small cast, and requests to try on them.

Everything comes from one `random.Random`, so that a seed is a reproducer. Choices are few on
purpose: rules that never meet each other prove nothing. Rules that contradict each other (two kinds
of requests for the same peers on one port) do not come about: each kind has ports or peers of its
own.

    cast() -> parties                  who there is; SUBJECTS are those to ask about
    policy(chance) -> object           any kind that the engine takes in, groups included
    service(chance) -> object          a Service or an EndpointSlice
    requests(kind) -> requests         samples to try where a proxy reads that kind
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.unit.policy import oracle
from tests.unit.policy.worlds import ccnp, cidr_group, cnp, knp, node, outside, pod, reserved

if TYPE_CHECKING:
    from random import Random

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
SPACES: Final = ("x", "y")
WEB_80: Final = (("web", TCP, 80), ("dns", UDP, 53))
WEB_8080: Final = (("web", TCP, 8080), ("dns", UDP, 53))
SUBJECTS: Final = ("x/a", "x/b", "y/a", "health", "host")
PACKETS: Final = (
    (TCP, 80),
    (TCP, 53),
    (UDP, 53),
    (TCP, 8080),
    (TCP, 443),
    (TCP, 9092),
    (TCP, 79),
    (TCP, 85),
    (TCP, 65535),
    (UDP, 80),
    (SCTP, 80),
    (ICMP, 0),
    (ICMP, 8),
    (ICMP6, 128),
    (47, 0),
)
DNS_NAMES: Final = {"10.1.2.3": ("api.shop.io",), "2001:db8::1": ("shop.io", "a.b.shop.io")}


def cast() -> dict[str, oracle.Party]:
    """Pods, nodes and outside addresses."""
    pods = {
        f"{space}/{app}": pod(
            space,
            {"app": app, **({"tier": "front"} if app == "a" else {})},
            namespace_labels={"team": "red" if space == "x" else "blue"},
            ports=WEB_80 if app == "a" else WEB_8080,
        )
        for space in SPACES
        for app in "ab"
    }
    addresses = ("10.0.0.1", "10.1.2.3", "192.0.2.9", "fd00::1", "2001:db8::1")
    return {
        **pods,
        "elsewhere": pod("x", {"app": "a"}, cluster="other"),
        "host": node("host", {"zone": "a"}),
        "node": reserved("remote-node"),
        "node-b": node("remote-node", {"zone": "b"}),
        "health": reserved("health"),
        **{address: outside(address, DNS_NAMES.get(address, ())) for address in addresses},
    }


def policy(chance: Random, *, tiers: bool = True, audit: bool = True) -> dict[str, Any]:
    """One policy object, or a CIDR group."""
    kinds = ["cnp"] * 5 + ["ccnp", "ccnp", "knp", "knp", "group"]
    if tiers:
        kinds += ["anp", "anp", "banp", "tiered"]
    kind = chance.choice(kinds)
    if kind == "group":
        return group(chance)
    made = _MAKERS[kind](chance)
    if audit and chance.random() < 0.25:
        made["metadata"]["annotations"] = {oracle.AUDIT: chance.choice(("true", "true", "false"))}
    return made


def group(chance: Random) -> dict[str, Any]:
    """A CIDR group."""
    labels = {key: chance.choice("ab") for key in ("env", "site") if chance.random() < 0.5}
    return cidr_group(chance.choice("gh"), *_some(chance, CIDRS, 0, 3), **labels)


def service(chance: Random) -> dict[str, Any]:
    """A Service, or an EndpointSlice of one."""
    name, space = chance.choice(("shop", "db")), chance.choice(SPACES)
    if chance.random() < 0.4:
        addresses = list(_some(chance, ("10.0.0.1", "192.0.2.9", "fd00::1"), 0, 2))
        labels = {"kubernetes.io/service-name": name}
        return {
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-1", "namespace": space, "labels": labels},
            "endpoints": [{"addresses": addresses}],
        }
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": space, "labels": {"app": name}},
        "spec": {"selector": {"app": chance.choice("ab")}} if chance.random() < 0.5 else {},
    }


def requests(kind: str) -> list[dict[str, Any]]:
    """Requests that rules of a kind tell apart."""
    match kind:
        case "http":
            return [
                {
                    "kind": "http",
                    "method": method,
                    "path": path,
                    "host": host,
                    "headers": headers,
                    "sni": sni,
                }
                for method in ("GET", "POST")
                for path in ("/public", "/public/a?b=1", "/")
                for host in ("shop.io", "other")
                for headers in ({}, {"x-token": "1"}, {"x-token": "2"})
                for sni in (None, "shop.io", "www.shop.io")
            ]
        case "dns":
            names = ("shop.io", "api.shop.io.", "a.b.shop.io", "SHOP.IO", "other.org", "io")
            return [{"kind": "dns", "name": name} for name in names]
        case "kafka":
            return [
                {"kind": "kafka", "key": key, "version": version, "client": client, "topic": topic}
                for key in (0, 1, 3, 15, 18)
                for version in (0, 2)
                for client in ("", "me")
                for topic in ("orders", "other")
            ]
        case _:
            names = (None, "shop.io", "www.shop.io", "a.b.shop.io", "other.org")
            return [{"kind": "tls", "sni": name} for name in names]


# ---- parts ----

CIDRS: Final = (
    "10.0.0.0/8",
    "10.0.0.1/32",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "fd00::/8",
    "::/0",
    "192.0.2.0/24",
)
_EXCEPTS: Final = {
    "10.0.0.0/8": ("10.1.0.0/16", "10.0.0.1/32"),
    "0.0.0.0/0": ("10.0.0.0/8", "192.0.2.9/32"),
    "::/0": ("fd00::/16", "2001:db8::/32"),
}
_ENTITIES: Final = (
    "all",
    "world",
    "world-ipv4",
    "host",
    "remote-node",
    "health",
    "none",
    "cluster",
)
_KEYS: Final = ("app", "k8s:app", "any:app", "tier", "k8s:tier", "other:app", "absent")
_VALUES: Final = ("a", "b", "front", "none")
_PORTS: Final = ("80", "80", "80", "53", "53", "0", "8080", "79", "web", "dns", "1", "443", "9092")
_ICMPS: Final[tuple[dict[str, Any], ...]] = (
    {"type": 0},
    {"type": 8},
    {"type": "EchoReply"},
    {"type": 128, "family": "IPv6"},
    {"type": "EchoRequest", "family": "IPv6"},
)
_CONTEXT: Final = {"secret": {"namespace": "x", "name": "cert"}}


def _some(chance: Random, choices: tuple[Any, ...], least: int, most: int) -> list[Any]:
    return chance.sample(choices, min(chance.randint(least, most), len(choices)))


def _name(chance: Random) -> str:
    return chance.choice("pqrs")


def _cnp(chance: Random) -> dict[str, Any]:
    made = cnp(_rule(chance), name=_name(chance), namespace=chance.choice(SPACES))
    if chance.random() < 0.15:
        made["specs"] = [_rule(chance)]
    return made


def _ccnp(chance: Random) -> dict[str, Any]:
    rule = _rule(chance)
    if chance.random() < 0.25:
        del rule["endpointSelector"]
        for items in (rule.get(name) or () for name in rule if name.startswith(("in", "eg"))):
            for item in items:
                for ports in item.get("toPorts") or ():
                    for key in ("rules", "serverNames", "terminatingTLS"):
                        ports.pop(key, None)
        rule["nodeSelector"] = chance.choice(({}, {"matchLabels": {"zone": chance.choice("ab")}}))
    return ccnp(rule, name=_name(chance))


def _knp(chance: Random) -> dict[str, Any]:
    keys = ("app", "tier")
    spec: dict[str, Any] = {"podSelector": _selector(chance, keys, spaces=False)}
    for name, word in (("ingress", "from"), ("egress", "to")):
        if chance.random() < 0.6:
            spec[name] = [_kubernetes_item(chance, word) for _ in range(chance.randint(0, 2))]
    if chance.random() < 0.6:
        spec["policyTypes"] = list(_some(chance, ("Ingress", "Egress"), 0, 2))
    return knp(_name(chance), chance.choice(SPACES), **spec)


def _rule(chance: Random) -> dict[str, Any]:
    made: dict[str, Any] = {"endpointSelector": _selector(chance)}
    for name in ("ingress", "egress", "ingressDeny", "egressDeny"):
        if chance.random() < (0.3 if name.endswith("Deny") else 0.7):
            made[name] = [_item(chance, name) for _ in range(chance.randint(0, 2))]
    if not any(made.get(name) for name in ("ingress", "egress", "ingressDeny", "egressDeny")):
        made["ingress"] = [{}]
    if chance.random() < 0.4:
        made["enableDefaultDeny"] = {
            name: chance.random() < 0.3 for name in ("ingress", "egress") if chance.random() < 0.8
        }
    return made


def _selector(
    chance: Random, keys: tuple[str, ...] = _KEYS, *, spaces: bool = True
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if chance.random() < 0.4:
        return made
    if chance.random() < 0.7:
        made["matchLabels"] = {key: chance.choice(_VALUES) for key in _some(chance, keys[:3], 0, 1)}
        if spaces and chance.random() < 0.4:
            key = chance.choice((f"k8s:{oracle.NS}", oracle.NS))
            made["matchLabels"][key] = chance.choice(SPACES)
    if chance.random() < 0.4:
        key, values = chance.choice(keys), _VALUES
        if spaces and chance.random() < 0.4:
            key = chance.choice((f"k8s:{oracle.NS_LABEL}team", f"k8s:{oracle.NS}"))
            values = ("red", "blue", *SPACES)
        made["matchExpressions"] = [_expression(chance, key, values)]
    return made


def _expression(chance: Random, key: str, values: tuple[str, ...]) -> dict[str, Any]:
    operator = chance.choice(("In", "NotIn", "Exists", "DoesNotExist"))
    made: dict[str, Any] = {"key": key, "operator": operator}
    if operator in ("In", "NotIn"):
        made["values"] = _some(chance, values, 1, 2)
    return made


def _item(chance: Random, place: str) -> dict[str, Any]:
    word = "from" if place.startswith("i") else "to"
    peers = _peers(chance, word, deny=place.endswith("Deny"))
    ports: dict[str, Any] = {}
    if chance.random() < 0.4 and not place.endswith("Deny"):
        count = chance.choice((1, 1, 2))
        ports = {"toPorts": [_l7(chance, word, peers) for _ in range(count)]}
    elif chance.random() < 0.7:
        ports = _l4(chance)
    return {**peers, **ports}


def _peers(chance: Random, word: str, *, deny: bool) -> dict[str, Any]:
    match chance.randrange(16):
        case 0 | 1 | 14 | 15:
            return {}
        case 2 | 3 | 4 | 5:
            count = chance.choice((0, 1, 1, 1, 2))
            return {f"{word}Endpoints": [_selector(chance) for _ in range(count)]}
        case 6 | 7:
            return {f"{word}Entities": _some(chance, _ENTITIES, 0, 2)}
        case 8 | 9:
            return {f"{word}CIDR": _some(chance, CIDRS, 0, 2)}
        case 10:
            return {f"{word}CIDRSet": [_cidr_rule(chance) for _ in range(chance.randint(1, 2))]}
        case 11:
            return {f"{word}CIDRSet": [_group_rule(chance)]}
        case 12:
            zone = {"matchLabels": {"zone": chance.choice("ab")}}
            return {f"{word}Nodes": [chance.choice(({}, zone))]}
    if word == "from":
        return {}
    if deny or chance.random() < 0.5:
        return {"toServices": [_service_peer(chance)]}
    names = (
        {"matchName": "api.shop.io"},
        {"matchName": "Shop.io"},
        {"matchPattern": "*.shop.io"},
        {"matchPattern": "**.shop.io"},
        {"matchPattern": "*"},
    )
    return {"toFQDNs": _some(chance, names, 0, 2)}


def _service_peer(chance: Random) -> dict[str, Any]:
    space = {"namespace": chance.choice(SPACES)} if chance.random() < 0.6 else {}
    name = chance.choice(("shop", "db"))
    if chance.random() < 0.5:
        return {"k8sService": {"serviceName": name, **space}}
    return {"k8sServiceSelector": {"selector": {"matchLabels": {"app": name}}, **space}}


def _cidr_rule(chance: Random) -> dict[str, Any]:
    cidr = chance.choice(CIDRS)
    made: dict[str, Any] = {"cidr": cidr}
    if cidr in _EXCEPTS and chance.random() < 0.6:
        made["except"] = _some(chance, _EXCEPTS[cidr], 1, 2)
    return made


def _group_rule(chance: Random) -> dict[str, Any]:
    if chance.random() < 0.5:
        made: dict[str, Any] = {"cidrGroupRef": chance.choice("gh")}
    else:
        key = chance.choice(("env", "cidrgroup:env", "any:site"))
        made = {"cidrGroupSelector": {"matchLabels": {key: chance.choice("ab")}}}
    if chance.random() < 0.3:
        made["except"] = [chance.choice(("10.1.0.0/16", "10.0.0.1/32", "192.0.2.9/32"))]
    return made


def _l4(chance: Random) -> dict[str, Any]:
    match chance.randrange(8):
        case 0:
            fields = [chance.choice(_ICMPS) for _ in range(chance.randint(0, 2))]
            return {"icmps": [{"fields": fields}]}
        case 1:
            return {"toPorts": [{}] if chance.random() < 0.3 else []}
        case _:
            count = chance.choice((1, 1, 1, 2))
            return {"toPorts": [{"ports": _port_list(chance)} for _ in range(count)]}


def _port_list(chance: Random) -> list[dict[str, Any]]:
    return [_port(chance) for _ in range(chance.choice((0, 1, 1, 1, 2)))]


def _port(chance: Random) -> dict[str, Any]:
    port = chance.choice(_PORTS)
    made: dict[str, Any] = {"port": port}
    protocol = chance.choice(("TCP", "TCP", "UDP", "SCTP", "ANY", None))
    if protocol is not None:
        made["protocol"] = protocol
    if port.isdigit() and port != "0" and chance.random() < 0.4:
        made["endPort"] = chance.choice((0, 81, 90, 443, 8080, 65535))
    return made


def _l7(chance: Random, word: str, peers: dict[str, Any]) -> dict[str, Any]:
    """An element of toPorts with rules about requests.

    HTTP on 80 and Kafka on 80 never have the same peers: entities are Kafka's there. Server names
    stand alone on 443, and with HTTP in connections that are opened on 8080.
    """
    kinds = ["http", "http", "http", "tls", "opened", "kafka"] + ["dns"] * 3 * (word == "to")
    match chance.choice(kinds):
        case "dns":
            ports = [{"port": "53", **_one_of(chance, "ANY", "UDP", "TCP")}]
            return {"ports": ports, "rules": {"dns": _some(chance, _DNS, 1, 2)}}
        case "kafka":
            named = peers.get(f"{word}Entities", ["all"])
            port = "9092" if "all" in named else "80"
            rules = _some(chance, _KAFKA, 1, 2)
            return {"ports": [{"port": port, "protocol": "TCP"}], "rules": {"kafka": rules}}
        case "tls":
            names = _some(chance, ("shop.io", "*.shop.io", "**.shop.io"), 1, 2)
            return {"ports": [{"port": "443", "protocol": "TCP"}], "serverNames": names}
        case "opened":
            made: dict[str, Any] = {
                "ports": [{"port": "8080", "protocol": "TCP"}],
                "terminatingTLS": _CONTEXT,
            }
            if chance.random() < 0.6:
                made["serverNames"] = _some(chance, ("shop.io", "*.shop.io"), 1, 2)
            if chance.random() < 0.8:
                made["rules"] = {"http": _some(chance, _HTTP, 1, 2)}
            return made
    ports = [{"port": chance.choice(("80", "79")), "protocol": "TCP"}]
    if f"{word}Entities" in peers:
        ports = [{"port": "85", "protocol": "TCP"}]
    elif chance.random() < 0.3:
        ports = [{"port": "79", "endPort": 90, "protocol": "TCP"}]
    return {"ports": ports, "rules": {"http": _some(chance, _HTTP, 0, 2)}}


def _one_of(chance: Random, *protocols: str) -> dict[str, str]:
    return {"protocol": chance.choice(protocols)}


_HTTP: Final[tuple[dict[str, Any], ...]] = (
    {"method": "GET"},
    {"path": "/public.*"},
    {"method": "GET", "path": "/public"},
    {"method": "POST", "host": "shop[.]io"},
    {"headers": ["X-Token: 1"]},
    {"headers": ["X-Token"]},
    {"path": "/", "headerMatches": [{"name": "X-Token", "value": "2"}]},
    {"method": "POST", "headerMatches": [{"name": "X-Own", "value": "1", "mismatch": "ADD"}]},
    {},
)
_DNS: Final = (
    {"matchName": "shop.io"},
    {"matchPattern": "*.shop.io"},
    {"matchPattern": "**.shop.io"},
    {"matchPattern": "*"},
)
_KAFKA: Final[tuple[dict[str, Any], ...]] = (
    {"role": "produce", "topic": "orders"},
    {"role": "consume"},
    {"apiKey": "fetch", "apiVersion": "2"},
    {"clientID": "me"},
    {"topic": "orders"},
)


def _kubernetes_item(chance: Random, word: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if chance.random() < 0.7:
        made[word] = [_kubernetes_peer(chance) for _ in range(chance.choice((0, 1, 1, 2)))]
    if chance.random() < 0.6:
        made["ports"] = [_kubernetes_port(chance) for _ in range(chance.choice((0, 1, 1, 2)))]
    return made


def _kubernetes_peer(chance: Random) -> dict[str, Any]:
    if chance.random() < 0.3:
        return {"ipBlock": _cidr_rule(chance)}
    made: dict[str, Any] = {}
    if chance.random() < 0.7:
        made["podSelector"] = _selector(chance, ("app", "tier"), spaces=False)
    if not made or chance.random() < 0.4:
        made["namespaceSelector"] = _teams(chance)
    return made


def _teams(chance: Random) -> dict[str, Any]:
    if chance.random() < 0.5:
        return {}
    return {"matchExpressions": [_expression(chance, "team", ("red", "blue"))]}


def _kubernetes_port(chance: Random) -> dict[str, Any]:
    if chance.random() < 0.2:
        return {"port": 79, "endPort": 90}
    made: dict[str, Any] = {}
    if chance.random() < 0.7:
        made["protocol"] = chance.choice(("TCP", "UDP", "SCTP"))
    if chance.random() < 0.8:
        made["port"] = chance.choice((80, 53, 8080, "web", "dns"))
    return made


def _anp(chance: Random) -> dict[str, Any]:
    return _tiered(chance, "AdminNetworkPolicy", "v1alpha1", _name(chance), "Allow", pass_on=True)


def _banp(chance: Random) -> dict[str, Any]:
    kind = "BaselineAdminNetworkPolicy"
    made = _tiered(chance, kind, "v1alpha1", "default", "Allow", pass_on=False)
    del made["spec"]["priority"]
    return made


def _cluster(chance: Random) -> dict[str, Any]:
    kind = "ClusterNetworkPolicy"
    made = _tiered(chance, kind, "v1alpha2", _name(chance), "Accept", pass_on=True)
    made["spec"]["tier"] = chance.choice(("Admin", "Baseline"))
    return made


def _tiered(
    chance: Random, kind: str, version: str, name: str, allow: str, *, pass_on: bool
) -> dict[str, Any]:
    actions = (allow, "Deny", "Pass") if pass_on else (allow, "Deny")
    spec: dict[str, Any] = {
        "priority": chance.choice((10, 20)),
        "subject": _pods(chance),
    }
    for direction, word in (("ingress", "from"), ("egress", "to")):
        if chance.random() < 0.7:
            spec[direction] = [
                _tiered_rule(chance, word, chance.choice(actions), allow)
                for _ in range(chance.randint(1, 2))
            ]
    return {
        "apiVersion": f"policy.networking.k8s.io/{version}",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def _tiered_rule(chance: Random, word: str, action: str, allow: str) -> dict[str, Any]:
    peers = [
        _tiered_peer(chance, word, named=action == allow) for _ in range(chance.choice((1, 2)))
    ]
    made: dict[str, Any] = {"action": action, word: peers}
    pods = all("namespaces" in one or "pods" in one for one in peers)
    if chance.random() < 0.6:
        if allow == "Allow":
            made["ports"] = [_admin_port(chance, named=pods)]
        else:
            made["protocols"] = [_protocol(chance, named=pods)]
    return made


def _tiered_peer(chance: Random, word: str, *, named: bool) -> dict[str, Any]:
    if word == "from" or chance.random() < 0.6:
        return _pods(chance)
    match chance.randrange(3 if named else 2):
        case 0:
            return {"networks": _some(chance, CIDRS, 1, 2)}
        case 1:
            return {"nodes": chance.choice(({}, {"matchLabels": {"zone": chance.choice("ab")}}))}
        case _:
            return {"domainNames": _some(chance, ("shop.io", "*.shop.io"), 1, 2)}


def _pods(chance: Random) -> dict[str, Any]:
    if chance.random() < 0.5:
        return {"namespaces": _teams(chance)}
    selector = _selector(chance, ("app", "tier"), spaces=False)
    return {"pods": {"namespaceSelector": _teams(chance), "podSelector": selector}}


def _admin_port(chance: Random, *, named: bool) -> dict[str, Any]:
    if named and chance.random() < 0.25:
        return {"namedPort": chance.choice(("web", "dns"))}
    protocol = chance.choice(("TCP", "UDP"))
    if chance.random() < 0.3:
        return {"portRange": {"protocol": protocol, "start": 79, "end": 90}}
    return {"portNumber": {"protocol": protocol, "port": chance.choice((80, 53))}}


def _protocol(chance: Random, *, named: bool) -> dict[str, Any]:
    if named and chance.random() < 0.25:
        return {"destinationNamedPort": chance.choice(("web", "dns"))}
    port: dict[str, Any] = {}
    if chance.random() < 0.7:
        numbers = chance.choice(
            ({"number": 80}, {"number": 53}, {"range": {"start": 79, "end": 90}})
        )
        port["destinationPort"] = numbers
    return {chance.choice(("tcp", "udp", "sctp")): port}


_MAKERS: Final = {
    "cnp": _cnp,
    "ccnp": _ccnp,
    "knp": _knp,
    "anp": _anp,
    "banp": _banp,
    "tiered": _cluster,
}
