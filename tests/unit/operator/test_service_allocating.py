"""Cluster addresses and node ports: each Service gets its own, and keeps it."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import hypothesis.strategies as st
import pytest
from cilium_operator.services.allocating import Ledger
from cilium_operator.services.reading import name_of
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from .service_objects import service

V4, V6 = IPv4Network("10.96.0.0/24"), IPv6Network("fd00:96::/120")
PORTS = range(30000, 32768)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger([V4, V6], PORTS)


def reasons(ledger: Ledger, item: dict[str, Any]) -> list[str]:
    return [problem.reason for problem in ledger.settle(item)[1]]


def test_a_service_gets_an_address_of_the_first_family(ledger: Ledger) -> None:
    spec, problems = ledger.settle(service())

    assert problems == []
    assert ip_address(spec["clusterIP"]) in V4
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert spec["ipFamilies"] == ["IPv4"]
    assert spec["ipFamilyPolicy"] == "SingleStack"
    assert spec["ports"] == [{"port": 80}]


@pytest.mark.parametrize("policy", ["PreferDualStack", "RequireDualStack"])
def test_a_service_of_both_families_gets_one_address_of_each(ledger: Ledger, policy: str) -> None:
    spec, _ = ledger.settle(service(ipFamilyPolicy=policy, ipFamilies=["IPv6"]))

    assert spec["ipFamilies"] == ["IPv6", "IPv4"]
    assert [ip_address(text).version for text in spec["clusterIPs"]] == [6, 4]
    assert spec["clusterIP"] == spec["clusterIPs"][0]


def test_both_families_cannot_be_had_of_one_network() -> None:
    ledger = Ledger([V4], PORTS)

    assert reasons(ledger, service(ipFamilyPolicy="RequireDualStack")) == ["NoDualStack"]
    assert reasons(ledger, service(ipFamilyPolicy="PreferDualStack")) == []
    assert reasons(ledger, service(ipFamilies=["IPv6"])) == ["NoClusterIP"]


def test_a_chosen_address_is_kept(ledger: Ledger) -> None:
    spec, problems = ledger.settle(service(clusterIP="10.96.0.77"))

    assert problems == []
    assert spec["clusterIPs"] == ["10.96.0.77"]


def test_an_address_that_another_holds_stays_the_others(ledger: Ledger) -> None:
    ledger.settle(service("first", clusterIP="10.96.0.77"))

    _spec, problems = ledger.settle(service("second", clusterIP="10.96.0.77"))

    assert [problem.reason for problem in problems] == ["ClusterIPConflict"]
    assert "held by the Service default/first" in problems[0].message
    assert ledger.holder_of(ip_address("10.96.0.77")) == ("default", "first")


@pytest.mark.parametrize(
    ("address", "reason"),
    [("192.0.2.1", "ClusterIPOutOfRange"), ("nonsense", "InvalidClusterIP")],
)
def test_a_wrong_address_is_a_problem(ledger: Ledger, address: str, reason: str) -> None:
    assert reason in reasons(ledger, service(clusterIP=address))


def test_headless_services_get_no_address(ledger: Ledger) -> None:
    spec, problems = ledger.settle(service(clusterIP="None", selector={"app": "web"}))

    assert problems == []
    assert spec["clusterIPs"] == ["None"]
    assert spec["ipFamilies"] == ["IPv4"]


def test_an_external_name_gives_its_address_back(ledger: Ledger) -> None:
    spec, _ = ledger.settle(service())
    before = spec["clusterIP"]

    spec, problems = ledger.settle(
        service(type="ExternalName", externalName="x.example", clusterIP=before)
    )

    assert "clusterIP" not in spec
    assert problems == []
    assert ledger.holder_of(ip_address(before)) is None


def test_a_service_that_forgot_its_address_gets_the_same_again(ledger: Ledger) -> None:
    first, _ = ledger.settle(service(type="NodePort"))

    again, _ = ledger.settle(service(type="NodePort"))

    assert again == first


def test_a_full_network_gives_nothing_until_something_is_released() -> None:
    ledger = Ledger([IPv4Network("10.96.0.0/30")], PORTS)
    given = [ledger.settle(service(name))[0]["clusterIP"] for name in ("a", "b")]

    assert sorted(given) == ["10.96.0.1", "10.96.0.2"]
    assert reasons(ledger, service("c")) == ["NoClusterIP"]
    ledger.release(("default", "a"))
    assert ledger.settle(service("c"))[0]["clusterIP"] == given[0]


def test_node_ports_are_given_to_every_port(ledger: Ledger) -> None:
    ports = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80}]

    spec, problems = ledger.settle(service(type="NodePort", ports=ports))

    given = [port["nodePort"] for port in spec["ports"]]
    assert problems == []
    assert given[0] == given[1], "one number serves one port of both protocols"
    assert given[2] != given[0]
    assert all(port in PORTS for port in given)
    assert ports[2] == {"port": 80}, "what was asked about is left as it was"


def test_chosen_node_ports_are_kept_and_conflicts_told(ledger: Ledger) -> None:
    ports = [{"port": 80, "nodePort": 30080}]

    assert ledger.settle(service("a", type="NodePort", ports=ports))[0]["ports"] == ports
    _spec, problems = ledger.settle(service("b", type="LoadBalancer", ports=ports))

    assert [problem.reason for problem in problems] == ["NodePortConflict"]
    assert problems[0].message.startswith("spec.ports[0].nodePort: 30080 is held by")


def test_a_node_port_outside_the_range_is_a_problem(ledger: Ledger) -> None:
    ports = [{"port": 80, "nodePort": 80}]

    assert reasons(ledger, service(type="NodePort", ports=ports)) == ["NodePortOutOfRange"]


def test_load_balancers_may_do_without_node_ports(ledger: Ledger) -> None:
    spec, _ = ledger.settle(service(type="LoadBalancer", allocateLoadBalancerNodePorts=False))

    assert spec["ports"] == [{"port": 80}]


def test_local_load_balancers_get_a_health_check_port(ledger: Ledger) -> None:
    item = service(type="LoadBalancer", externalTrafficPolicy="Local")

    spec, _ = ledger.settle(item)

    assert spec["healthCheckNodePort"] in PORTS
    assert spec["healthCheckNodePort"] != spec["ports"][0]["nodePort"]
    spec["externalTrafficPolicy"] = "Cluster"
    ledger.settle(item | {"spec": spec})
    assert ledger.holder_of(spec["healthCheckNodePort"]) is None


def test_full_ports_are_a_problem() -> None:
    ledger = Ledger([V4], range(30000, 30001))
    ledger.settle(service("a", type="NodePort"))

    assert reasons(ledger, service("b", type="NodePort")) == ["NoNodePort"]


def test_another_leader_finds_all_as_it_was(ledger: Ledger) -> None:
    items = [
        item | {"spec": ledger.settle(item)[0]}
        for item in (service(f"s{number}", type="NodePort") for number in range(50))
    ]
    successor = Ledger([V4, V6], PORTS)
    for item in items:
        successor.claim(item)

    assert [successor.settle(item) for item in items] == [(item["spec"], []) for item in items]


class Ledgers(RuleBasedStateMachine):
    """Services come, change and go in a small network; nothing is ever given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger([IPv4Network("10.96.0.0/29")], range(30000, 30008))
        self.stored: dict[str, dict[str, Any]] = {}
        self.troubled: dict[str, bool] = {}

    names = st.sampled_from("abcdefghij")

    @rule(
        name=names,
        kind=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        address=st.sampled_from([None, "10.96.0.1", "10.96.0.5"]),
        port=st.sampled_from([None, 30001, 30005]),
        local=st.booleans(),
        keep=st.booleans(),
    )
    def put(
        self,
        name: str,
        kind: str,
        address: str | None,
        port: int | None,
        *,
        local: bool,
        keep: bool,
    ) -> None:
        before = self.stored.get(name)
        spec: dict[str, Any] = dict(before["spec"]) if before and keep else {}
        spec["type"] = kind
        if address is not None:
            spec |= {"clusterIP": address, "clusterIPs": [address]}
        if port is not None:
            spec["ports"] = [{"port": 80, "nodePort": port}]
        if local:
            spec["externalTrafficPolicy"] = "Local"
        self.settle(service(name, **spec))

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.stored.pop(name, None)
        self.troubled.pop(name, None)
        self.ledger.release(("default", name))

    @rule()
    def fail_over(self) -> None:
        self.ledger = Ledger([IPv4Network("10.96.0.0/29")], range(30000, 30008))
        for name in sorted(self.stored, key=lambda one: (self.troubled[one], one)):
            self.ledger.claim(self.stored[name])
        for item in list(self.stored.values()):
            self.settle(item)

    def settle(self, item: dict[str, Any]) -> None:
        spec, problems = self.ledger.settle(item)
        name = name_of(item)[1]
        self.stored[name] = item | {"spec": spec}
        self.troubled[name] = bool(problems)

    @invariant()
    def nobody_shares(self) -> None:
        seen: dict[Any, str] = {}
        for name, item in self.stored.items():
            spec = item["spec"]
            if self.troubled[name] or spec["type"] == "ExternalName":
                continue
            mine = {*spec.get("clusterIPs", ())}
            if spec["type"] != "ClusterIP":
                mine |= {port["nodePort"] for port in spec["ports"]}
            if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
                assert spec["healthCheckNodePort"] not in mine
                mine.add(spec["healthCheckNodePort"])
            for one in mine:
                assert seen.setdefault(one, name) == name
                wanted = one if isinstance(one, int) else ip_address(one)
                assert self.ledger.holder_of(wanted) == ("default", name)

    @invariant()
    def nothing_is_leaked(self) -> None:
        held: set[Any] = set()
        for name in "abcdefghij":
            held |= self.ledger.holding(("default", name))
        written: set[Any] = set()
        for item in self.stored.values():
            spec = item["spec"]
            written |= {ip_address(text) for text in spec.get("clusterIPs", ())}
            written |= {port.get("nodePort") for port in spec["ports"]}
            written.add(spec.get("healthCheckNodePort"))
        assert held <= written


Ledgers.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedgers = Ledgers.TestCase
