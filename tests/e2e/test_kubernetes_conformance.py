"""NetworkPolicy as real traffic: the whole truth table of every case, over both families.

Pods a, b, c in namespaces x, y, z serve ports 80 and 81 over TCP, UDP and SCTP. A case is what the
conformance suites probe; the table that it must give comes from the brute-force oracle, and what
the case itself says of x/a is compared with that table first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.driving import Cluster, PodSpec
from tests.unit.policy import oracle
from tests.unit.policy.test_kubernetes_conformance import (
    CASES,
    EVERYTHING,
    OTHERS,
    TCP_80,
    Case,
    base,
    egress,
    ingress,
    label,
)
from tests.unit.policy.worlds import SCTP, SERVED, TCP, UDP, conformance_parties, outside, pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.running import Lab

PODS = tuple(conformance_parties())
KINDS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
OUTSIDE = {"203.0.113.10": 4, "203.0.113.20": 4, "2001:db8:113::a": 6, "2001:db8:113::14": 6}
Table = dict[tuple[str, str], frozenset[tuple[int, int]]]
"""On what each place reaches each other."""


@pytest.fixture(scope="module")
def cluster(start_lab: Callable[..., Lab]) -> Iterator[Cluster]:
    # labels of pods change here, and nobody else waits for it
    lab = start_lab(2, "identity-change-grace-period=0s")
    with Cluster(lab, 2) as made:
        spaces = {space: {"ns": space} for space in "xyz"}
        made.add_pods([spec(name) for name in PODS], spaces)
        made.serve_at("world", "--tcp", "80,81", "--udp", "80,81", "--sctp", "80,81")
        made.open_world()
        yield made


def spec(name: str) -> PodSpec:
    """One pod of the suites."""
    space, app = name.split("/")
    numbers = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
    ports = tuple((port, number, numbers[protocol]) for port, protocol, number in SERVED)
    return PodSpec(space, app, {"pod": app}, ports=ports)


def truth(parties: dict[str, oracle.Party], policies: list[dict[str, Any]]) -> Table:
    """What the oracle says: who reaches whom on what; pods do not probe themselves."""
    pods = tuple(party for party in parties.values() if party.address is None)
    setting = oracle.Setting(pods=pods)
    table: Table = {}
    for source, sender in parties.items():
        for target, receiver in parties.items():
            if source == target or (sender.address and receiver.address):
                continue
            table[source, target] = frozenset(
                (protocol, port)
                for protocol, port in EVERYTHING
                if passes(policies, sender, receiver, protocol, port, setting)
            )
    return table


def passes(
    policies: list[dict[str, Any]],
    sender: oracle.Party,
    receiver: oracle.Party,
    protocol: int,
    port: int,
    setting: oracle.Setting,
) -> bool:
    out = oracle.Packet("egress", receiver, protocol, port)
    into = oracle.Packet("ingress", sender, protocol, port)
    leaves = sender.address is not None or oracle.passes(policies, sender, out, setting)
    return leaves and (
        receiver.address is not None or oracle.passes(policies, receiver, into, setting)
    )


def addresses(cluster: Cluster, source: str, target: str) -> list[str]:
    """Where a source asks for a target: each of its addresses, or those outside of its family."""
    if target in OUTSIDE:
        return [target]
    found = [cluster.pods[target].ipv4, cluster.pods[target].ipv6]
    return [one for one in found if source not in OUTSIDE or (":" in one) == (":" in source)]


def disagreements(cluster: Cluster, table: Table) -> list[str]:
    """Probe the whole table; what is not as it says."""
    order: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for (source, target), services in table.items():
        place = "world" if source in OUTSIDE else source
        opened, shut = order.setdefault(place, ([], []))
        for protocol, port in sorted(EVERYTHING):
            for address in addresses(cluster, source, target):
                probe = {"kind": KINDS[protocol], "address": address, "port": port, "to": target}
                if source in OUTSIDE:
                    probe["source"] = source
                (opened if (protocol, port) in services else shut).append(probe)
    seen = cluster.probe(order)
    return [
        f"{place} -> {probe['to']} {probe['port']}/{probe['kind']} at {probe['address']}: "
        f"{answer or 'silence'}, expected {'an answer' if wanted else 'silence'}"
        for place, (opened, shut) in order.items()
        for probe, answer, wanted in zip(
            [*opened, *shut], seen[place], [True] * len(opened) + [False] * len(shut), strict=True
        )
        if (answer == "ok") != wanted
    ]


def check_case(case: Case, table: Table) -> None:
    """The oracle and the case agree on x/a."""
    for wanted, pairs in (
        (case.into, {other: (other, "x/a") for other in OTHERS}),
        (case.out, {other: ("x/a", other) for other in OTHERS}),
    ):
        if wanted is not None:
            assert wanted == {other: table[pair] for other, pair in pairs.items() if table[pair]}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_who_reaches_whom(cluster: Cluster, case: Case) -> None:
    table = truth(conformance_parties(), case.policies)
    check_case(case, table)

    with cluster.applied(*case.policies):
        assert disagreements(cluster, table) == []


def everybody() -> dict[str, oracle.Party]:
    """The pods, and addresses of the outside world."""
    return conformance_parties() | {address: outside(address) for address in OUTSIDE}


BLOCK = {"cidr": "203.0.113.0/24", "except": ["203.0.113.20/32"]}
PODS_BLOCK = {"cidr": "10.0.0.0/8"}
OUTSIDE_CASES = {
    "10 from nobody in particular, the outside included": [base(**{"from": []})],
    "14 every namespace, but not the outside": [ingress({"from": [{"namespaceSelector": {}}]})],
    "23 a block around the pods, outgoing": [egress({"to": [{"ipBlock": PODS_BLOCK}]})],
    "23 a block around the pods, incoming": [ingress({"from": [{"ipBlock": PODS_BLOCK}]})],
    "24 a block with an exception, outgoing": [egress({"to": [{"ipBlock": BLOCK}]})],
    "24 a block with an exception, incoming": [ingress({"from": [{"ipBlock": BLOCK}]})],
    "24 an exception that another policy admits": [
        egress({"to": [{"ipBlock": BLOCK}]}),
        egress({"to": [{"ipBlock": {"cidr": "203.0.113.20/32"}}]}, name="more"),
    ],
    "26 deny all, and allow all by a block": [
        ingress(name="deny"),
        ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}, name="allow"),
    ],
    "26 the same over IPv6": [
        ingress(name="deny"),
        ingress({"from": [{"ipBlock": {"cidr": "::/0"}}]}, name="allow"),
    ],
}
"""Blocks hold no pods: what Kubernetes leaves open is decided as Cilium does."""


@pytest.mark.parametrize("policies", OUTSIDE_CASES.values(), ids=OUTSIDE_CASES.keys())
def test_who_reaches_whom_and_the_outside(cluster: Cluster, policies: list[dict[str, Any]]) -> None:
    table = truth(everybody(), policies)

    with cluster.applied(*policies):
        assert disagreements(cluster, table) == []


def labelled(name: str, labels: dict[str, str], team: str = "") -> oracle.Party:
    space = name.partition("/")[0]
    spaces = {"ns": space, **({"team": team} if team else {}), "kubernetes.io/metadata.name": space}
    return pod(space, labels, namespace_labels=spaces, ports=SERVED)


def test_41_a_relabelled_pod_is_admitted_and_shut_out_again(cluster: Cluster) -> None:
    policy = ingress({"from": [{"podSelector": label("pod", "d"), "namespaceSelector": {}}]})
    with cluster.applied(policy):
        assert disagreements(cluster, truth(conformance_parties(), [policy])) == []

        cluster.label_pod("y/b", {"pod": "d"})
        try:
            table = truth(conformance_parties() | {"y/b": labelled("y/b", {"pod": "d"})}, [policy])
            assert table["y/b", "x/a"] == EVERYTHING
            assert disagreements(cluster, table) == []
        finally:
            cluster.label_pod("y/b", {"pod": "b"})

        assert disagreements(cluster, truth(conformance_parties(), [policy])) == []


def test_42_the_pods_of_a_relabelled_namespace_are_admitted(cluster: Cluster) -> None:
    policy = ingress({"from": [{"namespaceSelector": label("team", "red")}]})
    with cluster.applied(policy):
        assert disagreements(cluster, truth(conformance_parties(), [policy])) == []

        cluster.label_namespace("y", {"ns": "y", "team": "red"})
        try:
            red = {f"y/{app}": labelled(f"y/{app}", {"pod": app}, "red") for app in "abc"}
            table = truth(conformance_parties() | red, [policy])
            assert table["y/c", "x/a"] == EVERYTHING
            assert disagreements(cluster, table) == []
        finally:
            cluster.label_namespace("y", {"ns": "y"})


def test_43_isolation_follows_the_label_of_the_subject(cluster: Cluster) -> None:
    policy = ingress(subject=label("pod", "locked"))
    with cluster.applied(policy):
        assert disagreements(cluster, truth(conformance_parties(), [policy])) == []

        cluster.label_pod("x/a", {"pod": "locked"})
        try:
            locked = {"x/a": labelled("x/a", {"pod": "locked"})}
            table = truth(conformance_parties() | locked, [policy])
            assert not any(table[other, "x/a"] for other in OTHERS)
            assert disagreements(cluster, table) == []
        finally:
            cluster.label_pod("x/a", {"pod": "a"})

        assert disagreements(cluster, truth(conformance_parties(), [policy])) == []


def test_44_an_updated_policy_replaces_its_old_version(cluster: Cluster) -> None:
    with cluster.applied(ingress({})):
        assert disagreements(cluster, truth(conformance_parties(), [ingress({})])) == []

        cluster.apply(ingress())

        assert disagreements(cluster, truth(conformance_parties(), [ingress()])) == []


def test_45_a_deleted_policy_leaves_nothing_behind(cluster: Cluster) -> None:
    with cluster.applied(base()):
        pass

    assert disagreements(cluster, truth(conformance_parties(), [])) == []


def test_46_pods_of_a_new_namespace_are_admitted_by_its_labels(cluster: Cluster) -> None:
    names = ("y-2/a", "y-2/b")
    new = {
        name: pod(
            "y-2",
            {"pod": name[-1]},
            namespace_labels={"ns": "y", "kubernetes.io/metadata.name": "y-2"},
            ports=SERVED,
        )
        for name in names
    }
    with cluster.applied(base()):
        cluster.add_pods([spec(name) for name in names], {"y-2": {"ns": "y"}})
        try:
            table = truth(conformance_parties() | new, [base()])
            assert table["y-2/b", "x/a"] == TCP_80
            assert disagreements(cluster, table) == []
        finally:
            cluster.delete_pods(names)


@pytest.mark.parametrize("policies", [[ingress()], [egress()]], ids=["ingress", "egress"])
def test_50_a_pod_always_reaches_itself(cluster: Cluster, policies: list[dict[str, Any]]) -> None:
    me = cluster.pods["x/a"]
    probes = [
        {"kind": KINDS[protocol], "address": address, "port": port}
        for protocol, port in sorted(EVERYTHING)
        for address in (me.ipv4, me.ipv6)
    ]

    with cluster.applied(*policies):
        assert cluster.probe({"x/a": (probes, [])}) == {"x/a": ["ok"] * len(probes)}


def test_every_case_of_the_suites_is_here() -> None:
    numbers = {text.split()[0] for text in (*CASES, *OUTSIDE_CASES)}
    numbers |= {name.split("_")[1] for name in globals() if name.startswith("test_")}

    assert {str(number) for number in range(1, 51)} <= numbers
