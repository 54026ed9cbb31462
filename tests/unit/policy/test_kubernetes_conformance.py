"""NetworkPolicy means what Kubernetes says: the cases that conformance suites probe.

The world has pods a, b, c in namespaces x, y, z; each serves ports 80 and 81 over TCP, UDP and SCTP
under names. A case says who reaches x/a (or whom x/a reaches), from every other pod and on every
port.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from cilium_core.policy import parse

from tests.unit.policy.worlds import (
    SCTP,
    SERVED,
    TCP,
    UDP,
    World,
    conformance_parties,
    knp,
    outside,
    pod,
)

PODS = tuple(conformance_parties())
OTHERS = tuple(name for name in PODS if name != "x/a")
SERVICES = tuple((protocol, port) for protocol in (TCP, UDP, SCTP) for port in (80, 81))
EVERYTHING = frozenset(SERVICES)
TCP_80 = frozenset({(TCP, 80)})
A = {"matchLabels": {"pod": "a"}}
EVERY: dict[str, Any] = {}
B_TO_C = {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["b", "c"]}]}
X_OR_Y = {"matchExpressions": [{"key": "ns", "operator": "In", "values": ["x", "y"]}]}
Y_OR_Z = {"matchExpressions": [{"key": "ns", "operator": "In", "values": ["y", "z"]}]}
NOT_X = {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x"]}]}
A_OR_B = {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]}
WEB = [{"port": 80, "protocol": "TCP"}]
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def label(key: str, value: str) -> dict[str, Any]:
    return {"matchLabels": {key: value}}


def base(**changes: Any) -> dict[str, Any]:
    """Policy B of the suites, with its ingress item changed."""
    item = {"from": [{"podSelector": B_TO_C, "namespaceSelector": X_OR_Y}], "ports": WEB, **changes}
    return knp(
        "base",
        podSelector=A,
        policyTypes=["Ingress", "Egress"],
        ingress=[item],
        egress=[{"to": [{"podSelector": A_OR_B, "namespaceSelector": Y_OR_Z}], "ports": WEB}, DNS],
    )


def ingress(*items: Any, subject: Any = A, name: str = "in") -> dict[str, Any]:
    return knp(name, podSelector=subject, policyTypes=["Ingress"], ingress=list(items))


def egress(*items: Any, subject: Any = A, name: str = "out") -> dict[str, Any]:
    return knp(name, podSelector=subject, policyTypes=["Egress"], egress=list(items))


class Case(NamedTuple):
    """Policies, and who reaches x/a on what; `out` is whom x/a reaches."""

    policies: list[dict[str, Any]]
    into: dict[str, frozenset[tuple[int, int]]] | None = None
    out: dict[str, frozenset[tuple[int, int]]] | None = None


def on(services: frozenset[tuple[int, int]], *names: str) -> dict[str, frozenset[tuple[int, int]]]:
    return dict.fromkeys(names, services)


def only(*services: tuple[int, int]) -> dict[str, frozenset[tuple[int, int]]]:
    return on(frozenset(services), *OTHERS)


OPEN = on(EVERYTHING, *OTHERS)
CLOSED: dict[str, frozenset[tuple[int, int]]] = {}

CASES = {
    "1 no policy": Case([], OPEN, OPEN),
    "2 empty ingress list for all of a namespace": Case(
        [ingress(subject=EVERY)], CLOSED, on(EVERYTHING, *(n for n in OTHERS if n[0] != "x"))
    ),
    "3 both directions closed but for DNS": Case(
        [
            knp(
                podSelector={},
                policyTypes=["Ingress", "Egress"],
                egress=[DNS],
            )
        ],
        CLOSED,
        CLOSED,
    ),
    "4 empty egress list": Case([egress()], OPEN, CLOSED),
    "5 an empty ingress item": Case([ingress({})], OPEN, OPEN),
    "6 deny all and allow all": Case([ingress(name="deny"), ingress({}, name="allow")], OPEN, OPEN),
    "7 egress open, ingress closed": Case([egress({}), ingress()], CLOSED, OPEN),
    "8 egress of the sources closed": Case(
        [egress(subject=EVERY), ingress({})],
        on(EVERYTHING, *(n for n in OTHERS if n[0] != "x")),
        CLOSED,
    ),
    "9 the base policy": Case(
        [base()],
        on(TCP_80, "x/b", "x/c", "y/b", "y/c"),
        on(TCP_80, "y/a", "y/b", "z/a", "z/b"),
    ),
    "10 from nobody in particular": Case([base(**{"from": []})], on(TCP_80, *OTHERS)),
    "11 ports not named": Case([base(ports=[])], on(EVERYTHING, "x/b", "x/c", "y/b", "y/c")),
    "12 every pod of the own namespace": Case(
        [ingress({"from": [{"podSelector": {}}]})], on(EVERYTHING, "x/b", "x/c")
    ),
    "13 one pod of the own namespace": Case(
        [ingress({"from": [{"podSelector": label("pod", "c")}]})], on(EVERYTHING, "x/c")
    ),
    "14 every namespace": Case([ingress({"from": [{"namespaceSelector": {}}]})], OPEN),
    "15 every pod of every namespace": Case(
        [ingress({"from": [{"podSelector": {}, "namespaceSelector": {}}]})], OPEN
    ),
    "16 one pod of every namespace": Case(
        [ingress({"from": [{"podSelector": label("pod", "c"), "namespaceSelector": {}}]})],
        on(EVERYTHING, "x/c", "y/c", "z/c"),
    ),
    "17 one namespace": Case(
        [ingress({"from": [{"namespaceSelector": label("ns", "x")}]})],
        on(EVERYTHING, "x/b", "x/c"),
    ),
    "18 every pod of one namespace": Case(
        [ingress({"from": [{"podSelector": {}, "namespaceSelector": label("ns", "x")}]})],
        on(EVERYTHING, "x/b", "x/c"),
    ),
    "19 one pod of one namespace": Case(
        [
            ingress(
                {
                    "from": [
                        {"podSelector": label("pod", "c"), "namespaceSelector": label("ns", "x")}
                    ]
                }
            )
        ],
        on(EVERYTHING, "x/c"),
    ),
    "20 two peers": Case(
        [
            ingress(
                {
                    "from": [
                        {"podSelector": label("pod", "c")},
                        {"namespaceSelector": label("ns", "y")},
                    ]
                }
            )
        ],
        on(EVERYTHING, "x/c", "y/a", "y/b", "y/c"),
    ),
    "21 not one namespace": Case(
        [ingress({"from": [{"podSelector": label("pod", "b"), "namespaceSelector": NOT_X}]})],
        on(EVERYTHING, "y/b", "z/b"),
    ),
    "22 two pods, not one namespace": Case(
        [ingress({"from": [{"podSelector": B_TO_C, "namespaceSelector": NOT_X}]})],
        on(EVERYTHING, "y/b", "y/c", "z/b", "z/c"),
    ),
    "25 a block that holds nobody": Case(
        [ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/31"}}]})], CLOSED
    ),
    "27 a namespace selector that matches none": Case(
        [ingress({"from": [{"namespaceSelector": label("ns", "none")}]})], CLOSED
    ),
    "28 an empty port item": Case([ingress({"ports": [{}]})], only((TCP, 80), (TCP, 81))),
    "29 a protocol without a port": Case(
        [ingress({"ports": [{"protocol": "UDP"}]})], only((UDP, 80), (UDP, 81))
    ),
    "30 SCTP without a port": Case(
        [ingress({"ports": [{"protocol": "SCTP"}]})], only((SCTP, 80), (SCTP, 81))
    ),
    "31 a port without a protocol": Case([ingress({"ports": [{"port": 80}]})], only((TCP, 80))),
    "32 a UDP port": Case([ingress({"ports": [{"port": 81, "protocol": "UDP"}]})], only((UDP, 81))),
    "33 a name without a protocol": Case(
        [ingress({"ports": [{"port": "serve-81-tcp"}]})], only((TCP, 81))
    ),
    "34 a name with another protocol": Case(
        [ingress({"ports": [{"port": "serve-81-udp", "protocol": "TCP"}]})], CLOSED
    ),
    "35 a name that nobody serves": Case([ingress({"ports": [{"port": "no-such"}]})], CLOSED),
    "36 a number that nobody serves": Case([ingress({"ports": [{"port": 7777}]})], CLOSED),
    "37 a range to the served port": Case(
        [ingress({"ports": [{"port": 53, "endPort": 80}]})], only((TCP, 80))
    ),
    "38 a range around the served ports": Case(
        [ingress({"ports": [{"port": 53, "endPort": 84, "protocol": "UDP"}]})],
        only((UDP, 80), (UDP, 81)),
    ),
    "39 a number and a name": Case(
        [ingress({"ports": [{"port": 80}, {"port": "serve-81-udp", "protocol": "UDP"}]})],
        only((TCP, 80), (UDP, 81)),
    ),
    "40 two policies with a port each": Case(
        [
            ingress(
                {"from": [{"namespaceSelector": label("ns", "y")}], "ports": [{"port": port}]},
                name=f"port-{port}",
            )
            for port in (81, 80)
        ],
        on(frozenset({(TCP, 80), (TCP, 81)}), "y/a", "y/b", "y/c"),
    ),
    "47 a policy in another namespace": Case(
        [knp("far", "y", podSelector={}, ingress=[])],
        OPEN,
        on(EVERYTHING, *(n for n in OTHERS if n[0] != "y")),
    ),
    "48 an egress port by name": Case(
        [egress({"ports": [{"port": "serve-80-tcp"}]})], OPEN, only((TCP, 80))
    ),
    "49 each direction for itself": Case(
        [
            knp(
                podSelector=A,
                policyTypes=["Ingress", "Egress"],
                ingress=[{"ports": [{"port": 80}]}],
                egress=[{"ports": [{"port": 81}]}],
            )
        ],
        only((TCP, 80)),
        only((TCP, 81)),
    ),
    "types left out: ingress is always meant": Case([knp(podSelector=A)], CLOSED, OPEN),
    "types left out: egress is meant when it has rules": Case(
        [knp(podSelector=A, egress=[DNS])], CLOSED, CLOSED
    ),
    "a section that the types leave out is ignored": Case(
        [knp(podSelector=A, policyTypes=["Ingress"], ingress=[{}], egress=[DNS])], OPEN, OPEN
    ),
    "ingress rules while the types say egress": Case(
        [knp(podSelector=A, policyTypes=["Egress"], ingress=[{"ports": WEB}], egress=[{}])],
        OPEN,
        OPEN,
    ),
    "a missing subject is the whole namespace": Case(
        [knp(policyTypes=["Ingress"])], CLOSED, on(EVERYTHING, *(n for n in OTHERS if n[0] != "x"))
    ),
}


def reach_into(here: World) -> dict[str, frozenset[tuple[int, int]]]:
    """Who reaches x/a, and on what."""
    return reach(here, lambda other, protocol, port: here.reaches(other, "x/a", port, protocol))


def reach_out(here: World) -> dict[str, frozenset[tuple[int, int]]]:
    """Whom x/a reaches, and on what."""
    return reach(here, lambda other, protocol, port: here.reaches("x/a", other, port, protocol))


def reach(here, passes):
    found = {
        other: frozenset(
            (protocol, port) for protocol, port in SERVICES if passes(other, protocol, port)
        )
        for other in here.parties
        if other != "x/a" and "/" in other
    }
    return {other: services for other, services in found.items() if services}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_who_reaches_whom(case):
    here = World(conformance_parties())

    here.apply(*case.policies)

    if case.into is not None:
        assert reach_into(here) == case.into
    if case.out is not None:
        assert reach_out(here) == case.out


@pytest.mark.parametrize(
    ("block", "reached"),
    [
        ({"cidr": "198.51.100.0/24"}, {"198.51.100.7", "198.51.100.8"}),
        ({"cidr": "198.51.100.0/24", "except": ["198.51.100.7/32"]}, {"198.51.100.8"}),
        ({"cidr": "0.0.0.0/0"}, {"198.51.100.7", "198.51.100.8"}),
        ({"cidr": "::/0"}, {"fd00::1"}),
    ],
)
def test_a_block_holds_outside_addresses_but_no_pods(block, reached):
    addresses = ("198.51.100.7", "198.51.100.8", "fd00::1")
    here = World(conformance_parties() | {address: outside(address) for address in addresses})

    here.apply(egress({"to": [{"ipBlock": block}]}))

    assert {address for address in addresses if here.reaches("x/a", address, 80)} == reached
    assert reach_out(here) == CLOSED


def test_an_ingress_block_alone_does_not_admit_the_own_namespace():
    here = World(conformance_parties())

    here.apply(ingress({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}))

    assert reach_into(here) == CLOSED


def test_another_rule_admits_an_excepted_address():
    here = World(conformance_parties() | {"10.1.0.1": outside("10.1.0.1")})
    block = {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}

    here.apply(egress({"to": [{"ipBlock": block}]}))
    assert not here.reaches("x/a", "10.1.0.1", 80)
    here.apply(egress({"to": [{"ipBlock": {"cidr": "10.1.0.1/32"}}]}, name="more"))

    assert here.reaches("x/a", "10.1.0.1", 80)


def test_every_namespace_is_not_the_outside():
    here = World(conformance_parties() | {"10.1.0.1": outside("10.1.0.1")})

    here.apply(ingress({"from": [{"namespaceSelector": {}}]}))

    assert not here.reaches("10.1.0.1", "x/a", 80)


def test_no_peers_is_everyone_the_outside_included():
    here = World(conformance_parties() | {"10.1.0.1": outside("10.1.0.1")})

    here.apply(base(**{"from": []}))

    assert here.reaches("10.1.0.1", "x/a", 80)
    assert not here.reaches("10.1.0.1", "x/a", 81)


def relabelled(name: str, labels: dict[str, str], spaces: dict[str, str] | None = None):
    space = name.partition("/")[0]
    return pod(space, labels, namespace_labels=spaces or {"ns": space}, ports=SERVED)


def test_41_a_relabelled_pod_is_admitted_and_shut_out_again():
    here = World(conformance_parties())
    here.apply(ingress({"from": [{"podSelector": label("pod", "d"), "namespaceSelector": {}}]}))
    assert reach_into(here) == CLOSED

    here.put("y/b", relabelled("y/b", {"pod": "d"}))
    here.flush()
    assert reach_into(here) == on(EVERYTHING, "y/b")

    here.put("y/b", relabelled("y/b", {"pod": "b"}))
    here.flush()
    assert reach_into(here) == CLOSED


def test_42_the_pods_of_a_relabelled_namespace_are_admitted():
    here = World(conformance_parties())
    here.apply(ingress({"from": [{"namespaceSelector": label("team", "red")}]}))

    for name in ("y/a", "y/b", "y/c"):
        here.put(name, relabelled(name, {"pod": name[-1]}, {"ns": "y", "team": "red"}))
    here.flush()

    assert reach_into(here) == on(EVERYTHING, "y/a", "y/b", "y/c")


def test_43_isolation_follows_the_label_of_the_subject():
    here = World(conformance_parties())
    here.apply(ingress(subject=label("pod", "locked")))
    assert reach_into(here) == OPEN

    here.put("x/a", relabelled("x/a", {"pod": "locked"}))
    here.flush()
    assert reach_into(here) == CLOSED

    here.put("x/a", relabelled("x/a", {"pod": "a"}))
    here.flush()
    assert reach_into(here) == OPEN


def test_44_an_updated_policy_replaces_its_old_version():
    here = World(conformance_parties())
    here.apply(ingress({}))
    assert reach_into(here) == OPEN

    here.apply(ingress())

    assert reach_into(here) == CLOSED


def test_45_a_deleted_policy_leaves_nothing_behind():
    here = World(conformance_parties())
    before = {name: dict(entries) for name, entries in here.maps.items()}
    here.apply(base())

    here.delete(base())

    assert reach_into(here) == OPEN
    assert here.maps == before


def test_46_pods_of_a_new_namespace_are_admitted_by_its_labels():
    here = World(conformance_parties())
    here.apply(base())

    for name in ("y-2/a", "y-2/b"):
        here.put(name, relabelled(name, {"pod": name[-1]}, {"ns": "y"}))
    here.flush()

    assert reach_into(here) == on(TCP_80, "x/b", "x/c", "y/b", "y/c", "y-2/b")


def test_an_egress_name_is_each_peers_own_port():
    here = World(
        {
            "x/a": pod("x", {"pod": "a"}),
            "x/b": pod("x", {"pod": "b"}, ports=[("web", TCP, 80)]),
            "x/c": pod("x", {"pod": "c"}, ports=[("web", TCP, 81)]),
        }
    )

    here.apply(egress({"to": [{"podSelector": {}}], "ports": [{"port": "web"}]}))

    assert reach_out(here) == {"x/b": frozenset({(TCP, 80)}), "x/c": frozenset({(TCP, 81)})}


def test_a_pod_that_takes_a_port_name_on_is_reached_by_it():
    here = World({"x/a": pod("x", {"pod": "a"}), "x/b": pod("x", {"pod": "b"})})
    here.apply(egress({"ports": [{"port": "web"}]}))
    assert reach_out(here) == CLOSED

    here.put("x/b", pod("x", {"pod": "b"}, ports=[("web", TCP, 81)]))
    here.flush()
    assert reach_out(here) == {"x/b": frozenset({(TCP, 81)})}

    here.take("x/b")
    here.flush()
    assert not any(key.prefixlen for key in here.maps["x/a"])


def test_null_sections_are_as_if_not_written():
    policy = parse(knp(podSelector=None, ingress=None, egress=None, policyTypes=None))

    assert [(rule.direction.name, rule.peers) for rule in policy.rules] == [("INGRESS", ())]
