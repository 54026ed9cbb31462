"""Random policies, and changes of them, over the cast of `casts.py`.

Everything comes from one `random.Random`, so that a seed is a reproducer. Choices are few on
purpose: rules that never meet each other prove nothing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tests.unit.policy import oracle
from tests.unit.policy.worlds import ccnp, cidr_group, cnp, knp

if TYPE_CHECKING:
    from random import Random

APPS = ("a", "b")
SPACES = ("x", "y")
NAMES = ("p", "q", "r", "s")
GROUPS = ("g", "h")
CIDRS = (
    "10.0.0.0/8",
    "10.0.0.1/32",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "fd00::/8",
    "::/0",
    "192.0.2.0/24",
)
EXCEPTS = {
    "10.0.0.0/8": ("10.1.0.0/16", "10.0.0.1/32"),
    "0.0.0.0/0": ("10.0.0.0/8", "192.0.2.9/32"),
    "::/0": ("fd00::/16", "2001:db8::/32"),
}
ENTITIES = ("all", "world", "world-ipv4", "host", "remote-node", "health", "none", "cluster")
PORTS = ("80", "53", "0", "8080", "79", "web", "dns", "1", "443")
ENDS = (0, 81, 90, 443, 8080, 65535)
PROTOCOLS = ("TCP", "UDP", "SCTP", "ANY", None)
ICMPS: tuple[dict[str, Any], ...] = (
    {"type": 0},
    {"type": 8},
    {"type": "EchoReply"},
    {"type": 8, "family": "IPv4"},
    {"type": 128, "family": "IPv6"},
    {"type": "EchoRequest", "family": "IPv6"},
)
KEYS = ("app", "k8s:app", "any:app", "tier", "k8s:tier", "reserved:app", "other:app", "absent")
SPACE_KEYS = (f"k8s:{oracle.NS}", oracle.NS)
VALUES = ("a", "b", "front", "none")


def policy(chance: Random) -> dict[str, Any]:
    """One policy object, or a CIDR group."""
    kind = chance.choice(("cnp", "cnp", "cnp", "ccnp", "knp", "knp", "group"))
    if kind == "group":
        return group(chance)
    name = chance.choice(NAMES)
    if kind == "ccnp":
        return ccnp(rule(chance), name=name)
    space = chance.choice(SPACES)
    if kind == "knp":
        return knp(name, space, **_kubernetes(chance))
    made = cnp(rule(chance), name=name, namespace=space)
    if chance.random() < 0.1:
        made["specs"] = [rule(chance)]
    return made


def group(chance: Random) -> dict[str, Any]:
    """A CIDR group."""
    labels = {key: chance.choice("ab") for key in ("env", "site") if chance.random() < 0.5}
    return cidr_group(chance.choice(GROUPS), *_some(chance, CIDRS, 0, 3), **labels)


def rule(chance: Random) -> dict[str, Any]:
    """One rule of a CiliumNetworkPolicy."""
    made: dict[str, Any] = {"endpointSelector": selector(chance)}
    for name in ("ingress", "egress", "ingressDeny", "egressDeny"):
        if chance.random() < (0.45 if name.endswith("Deny") else 0.65):
            word = "from" if name.startswith("i") else "to"
            made[name] = [item(chance, word) for _ in range(chance.randint(0, 2))]
    if not any(made.get(name) for name in ("ingress", "egress", "ingressDeny", "egressDeny")):
        made["ingress"] = [{}]
    if chance.random() < 0.4:
        made["enableDefaultDeny"] = {
            name: chance.random() < 0.3 for name in ("ingress", "egress") if chance.random() < 0.7
        }
    return made


def selector(chance: Random, keys: tuple[str, ...] = KEYS, *, spaces: bool = True) -> Any:
    """A label selector; often the empty one, that selects everybody in reach."""
    made: dict[str, Any] = {}
    if chance.random() < 0.35:
        return made
    if chance.random() < 0.7:
        made["matchLabels"] = {
            key: chance.choice(VALUES) for key in _some(chance, keys[:3], 0, 1)
        } | ({chance.choice(keys): chance.choice(VALUES)} if chance.random() < 0.2 else {})
        if spaces and chance.random() < 0.4:
            made["matchLabels"][chance.choice(SPACE_KEYS)] = chance.choice(SPACES)
    if chance.random() < 0.4:
        if spaces and chance.random() < 0.4:
            key = chance.choice((f"k8s:{oracle.NS_LABEL}team", f"k8s:{oracle.NS}"))
            made["matchExpressions"] = [_expression(chance, key, ("red", "blue", *SPACES))]
        else:
            made["matchExpressions"] = [_expression(chance, chance.choice(keys), VALUES)]
    return made


def _expression(chance: Random, key: str, values: tuple[str, ...]) -> dict[str, Any]:
    operator = chance.choice(("In", "NotIn", "Exists", "DoesNotExist"))
    made: dict[str, Any] = {"key": key, "operator": operator}
    if operator in ("In", "NotIn"):
        made["values"] = list(_some(chance, values, 1, 2))
    return made


def item(chance: Random, word: str) -> dict[str, Any]:
    """One element of a direction's list."""
    return {**_peers(chance, word), **_ports(chance)}


def _peers(chance: Random, word: str) -> dict[str, Any]:
    match chance.randrange(12):
        case 0 | 1:
            return {}
        case 2 | 3 | 4 | 5:
            count = chance.choice((0, 1, 1, 1, 2))
            return {f"{word}Endpoints": [selector(chance) for _ in range(count)]}
        case 6 | 7:
            return {f"{word}Entities": list(_some(chance, ENTITIES, 0, 2))}
        case 8 | 9:
            return {f"{word}CIDR": list(_some(chance, CIDRS, 0, 2))}
        case 10:
            made = [_cidr_rule(chance) for _ in range(chance.randint(1, 2))]
            return {f"{word}CIDRSet": made}
        case _:
            return {f"{word}CIDRSet": [_group_rule(chance)]}


def _cidr_rule(chance: Random) -> dict[str, Any]:
    cidr = chance.choice(CIDRS)
    made: dict[str, Any] = {"cidr": cidr}
    if cidr in EXCEPTS and chance.random() < 0.6:
        made["except"] = list(_some(chance, EXCEPTS[cidr], 1, 2))
    return made


def _group_rule(chance: Random) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if chance.random() < 0.5:
        made["cidrGroupRef"] = chance.choice(GROUPS)
    else:
        made["cidrGroupSelector"] = {
            "matchLabels": {
                chance.choice(("env", "cidrgroup:env", "any:site")): chance.choice("ab")
            }
        }
    if chance.random() < 0.3:
        made["except"] = [chance.choice(("10.1.0.0/16", "10.0.0.1/32", "192.0.2.9/32"))]
    return made


def _ports(chance: Random) -> dict[str, Any]:
    match chance.randrange(10):
        case 0 | 1 | 2:
            return {}
        case 3:
            fields = [chance.choice(ICMPS) for _ in range(chance.randint(0, 2))]
            return {"icmps": [{"fields": fields}]}
        case 4:
            return {"toPorts": [{}] if chance.random() < 0.3 else []}
        case _:
            count = chance.choice((1, 1, 1, 2))
            return {"toPorts": [{"ports": _port_list(chance)} for _ in range(count)]}


def _port_list(chance: Random) -> list[dict[str, Any]]:
    return [_port(chance) for _ in range(chance.choice((0, 1, 1, 1, 2)))]


def _port(chance: Random) -> dict[str, Any]:
    port = chance.choice(PORTS)
    made: dict[str, Any] = {"port": port}
    if (protocol := chance.choice(PROTOCOLS)) is not None:
        made["protocol"] = protocol
    if port.isdigit() and port != "0" and chance.random() < 0.4:
        made["endPort"] = chance.choice(ENDS)
    return made


def _kubernetes(chance: Random) -> dict[str, Any]:
    keys = ("app", "app", "tier")
    made: dict[str, Any] = {"podSelector": selector(chance, keys, spaces=False)}
    for name, word in (("ingress", "from"), ("egress", "to")):
        if chance.random() < 0.6:
            made[name] = [_kubernetes_item(chance, word) for _ in range(chance.randint(0, 2))]
    if chance.random() < 0.6:
        made["policyTypes"] = list(_some(chance, ("Ingress", "Egress"), 0, 2))
    return made


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
        made["podSelector"] = selector(chance, ("app", "app", "tier"), spaces=False)
    if not made or chance.random() < 0.4:
        teams = {"matchExpressions": [_expression(chance, "team", ("red", "blue"))]}
        made["namespaceSelector"] = chance.choice(({}, teams))
    return made


def _kubernetes_port(chance: Random) -> dict[str, Any]:
    if chance.random() < 0.2:
        return {"port": 79, "endPort": 90}
    made: dict[str, Any] = {}
    if chance.random() < 0.7:
        made["protocol"] = chance.choice(("TCP", "UDP", "SCTP"))
    if chance.random() < 0.8:
        made["port"] = chance.choice((80, 53, 8080, "web", "dns"))
    return made


def _some(chance: Random, choices: tuple[str, ...], least: int, most: int) -> list[str]:
    return chance.sample(choices, min(chance.randint(least, most), len(choices)))


def smaller(obj: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object that lacks one list item, list or optional field of this one."""
    found: list[dict[str, Any]] = []
    for path in _places(obj, ()):
        candidate = copy.deepcopy(obj)
        where: Any = candidate
        for step in path[:-1]:
            where = where[step]
        del where[path[-1]]
        found.append(candidate)
    return found


_KEPT = {"apiVersion", "kind", "metadata", "spec", "endpointSelector", "podSelector"}


def _places(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Paths of what may be left out, the largest parts first."""
    if isinstance(value, dict):
        steps: list[Any] = [key for key in value if key != "metadata"]
    elif isinstance(value, list):
        steps = list(range(len(value)))
    else:
        return []
    own = [(*path, step) for step in steps if step not in _KEPT]
    return own + [place for step in steps for place in _places(value[step], (*path, step))]
