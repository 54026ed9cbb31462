"""Load balancers' addresses come from pools, each to one Service unless it is shared."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import hypothesis.strategies as st
import pytest
from cilium_operator.services.balancing import (
    AVAILABLE,
    CONFLICT,
    TOTAL,
    USED,
    PoolBook,
    is_served,
)
from cilium_operator.services.reading import name_of
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from .service_objects import pool, service

IPS = "lbipam.cilium.io/ips"
KEY = "lbipam.cilium.io/sharing-key"
ACROSS = "lbipam.cilium.io/sharing-cross-namespace"


def balancer(name: str = "web", **spec: Any) -> dict[str, Any]:
    return service(name, **({"type": "LoadBalancer", "ipFamilies": ["IPv4"]} | spec))


def book(*pools: dict[str, Any]) -> PoolBook:
    made = PoolBook()
    for one in pools:
        made.put_pool(one)
    return made


def give(made: PoolBook, item: dict[str, Any]) -> tuple[list[str], str]:
    """Addresses given and the reason of the condition."""
    found, condition = made.settle(item)
    return [str(one) for one in found], condition.reason


def test_the_lowest_free_address_of_each_family_is_given() -> None:
    made = book(pool("blue", "198.51.100.0/24", "2001:db8:51::/64"))

    assert give(made, balancer("a", ipFamilies=["IPv4", "IPv6"])) == (
        ["198.51.100.0", "2001:db8:51::"],
        "satisfied",
    )
    assert give(made, balancer("b")) == (["198.51.100.1"], "satisfied")
    made.release(("default", "a"))
    assert give(made, balancer("c")) == (["198.51.100.0"], "satisfied")


def test_first_and_last_addresses_can_be_left_out() -> None:
    made = book(pool("blue", "198.51.100.0/30", allowFirstLastIPs="No"))

    given = [give(made, balancer(name)) for name in ("a", "b", "c")]

    assert given == [
        (["198.51.100.1"], "satisfied"),
        (["198.51.100.2"], "satisfied"),
        ([], "out_of_ips"),
    ]


def test_ranges_and_single_addresses_are_blocks_too() -> None:
    blocks = [{"start": "198.51.100.9", "stop": "198.51.100.10"}, {"start": "198.51.100.20"}]
    made = book(pool(blocks=blocks))

    assert [give(made, balancer(name))[0] for name in ("a", "b", "c")] == [
        ["198.51.100.9"],
        ["198.51.100.10"],
        ["198.51.100.20"],
    ]


@pytest.mark.parametrize(
    ("selector", "served"),
    [
        ({"matchLabels": {"color": "blue"}}, True),
        ({"matchLabels": {"color": "red"}}, False),
        ({"matchExpressions": [{"key": "color", "operator": "In", "values": ["blue"]}]}, True),
        ({"matchExpressions": [{"key": "color", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"io.kubernetes.service.namespace": "default"}}, True),
        ({"matchLabels": {"io.kubernetes.service.name": "other"}}, False),
    ],
)
def test_a_pool_serves_whom_it_selects(selector: dict[str, Any], *, served: bool) -> None:
    made = book(pool("blue", "198.51.100.0/24", serviceSelector=selector))

    found, reason = give(made, balancer(labels={"color": "blue"}))

    assert bool(found) is served
    assert reason == ("satisfied" if served else "no_pool")


def test_a_disabled_pool_gives_nothing_new_and_takes_nothing_away() -> None:
    made = book(pool("blue", "198.51.100.0/24"))
    assert give(made, balancer("a")) == (["198.51.100.0"], "satisfied")

    made.put_pool(pool("blue", "198.51.100.0/24", disabled=True))

    assert give(made, balancer("a")) == (["198.51.100.0"], "satisfied")
    assert give(made, balancer("b")) == ([], "no_pool")


def test_an_address_goes_with_its_pool() -> None:
    made = book(pool("blue", "198.51.100.0/24"))
    give(made, balancer())

    made.remove_pool("blue")

    assert give(made, balancer()) == ([], "no_pool")


def test_requested_addresses_are_given_if_they_can_be() -> None:
    made = book(pool("blue", "198.51.100.0/24"))

    assert give(made, balancer("a", annotations={IPS: "198.51.100.7,198.51.100.9"})) == (
        ["198.51.100.7", "198.51.100.9"],
        "satisfied",
    )
    assert give(made, balancer("b", loadBalancerIP="198.51.100.7")) == ([], "already_allocated")
    assert give(made, balancer("c", loadBalancerIP="192.0.2.1")) == ([], "no_pool")
    assert give(made, balancer("d", loadBalancerIP="here")) == ([], "invalid_request")
    assert give(made, balancer("e", loadBalancerIP="fd00::1")) == ([], "wrong_family")


def test_another_request_gives_the_former_address_back() -> None:
    made = book(pool("blue", "198.51.100.0/24"))
    give(made, balancer("a"))

    assert give(made, balancer("a", loadBalancerIP="198.51.100.7"))[0] == ["198.51.100.7"]
    assert give(made, balancer("b"))[0] == ["198.51.100.0"]


def test_an_address_is_shared_by_key_and_different_ports() -> None:
    made = book(pool("blue", "198.51.100.0/24"))
    shared = {KEY: "one"}

    assert give(made, balancer("a", annotations=shared))[0] == ["198.51.100.0"]
    assert give(made, balancer("b", annotations=shared, ports=[{"port": 81}]))[0] == [
        "198.51.100.0"
    ]
    assert give(made, balancer("c", annotations=shared))[0] == ["198.51.100.1"], "port 80 is taken"
    assert give(made, balancer("d", ports=[{"port": 82}]))[0] == ["198.51.100.2"], "no key"


def test_namespaces_share_only_what_both_permit() -> None:
    made = book(pool("blue", "198.51.100.0/24"))
    give(made, balancer("a", annotations={KEY: "one", ACROSS: "shop"}))
    closed = balancer("b", namespace="shop", annotations={KEY: "one"}, ports=[{"port": 81}])
    opened = balancer(
        "c", namespace="shop", annotations={KEY: "one", ACROSS: "*"}, ports=[{"port": 82}]
    )

    assert give(made, closed)[0] == ["198.51.100.1"]
    assert give(made, opened)[0] == ["198.51.100.0"]


def test_classes_of_others_are_not_served() -> None:
    assert is_served(balancer())
    assert is_served(balancer(loadBalancerClass="io.cilium/l2-announcer"))
    assert not is_served(balancer(loadBalancerClass="example.com/other"))
    assert not is_served(service(type="NodePort"))


def test_of_two_pools_that_overlap_the_younger_gives_nothing() -> None:
    made = book(
        pool("young", "198.51.100.0/25", created="2026-02-01T00:00:00Z"),
        pool("old", "198.51.100.0/24", created="2026-01-01T00:00:00Z"),
    )
    conditions = {one.type: one for one in made.conditions_of_pool("young")}

    assert conditions[CONFLICT].status == "True"
    assert "the older pool old" in conditions[CONFLICT].message
    assert give(made, balancer())[0] == ["198.51.100.0"]
    made.remove_pool("old")
    conditions = {one.type: one for one in made.conditions_of_pool("young")}
    assert conditions[CONFLICT].status == "False"


def test_a_pool_tells_how_full_it_is() -> None:
    made = book(pool("blue", "198.51.100.0/30"))
    give(made, balancer("a"))
    give(made, balancer("b"))
    made.release(("default", "a"))

    numbers = {one.type: one.message for one in made.conditions_of_pool("blue")}

    assert (numbers[TOTAL], numbers[AVAILABLE], numbers[USED]) == ("4", "3", "1")


def test_another_leader_gives_everybody_the_same() -> None:
    made = book(pool("blue", "198.51.100.0/24"))
    items = [balancer(name) for name in "dcba"]
    for item in items:
        found, _ = made.settle(item)
        item["status"] = {"loadBalancer": {"ingress": [{"ip": str(one)} for one in found]}}
    successor = book(pool("blue", "198.51.100.0/24"))
    for item in items:
        successor.claim(item)

    newcomer = give(successor, balancer("0"))
    again = [give(successor, item)[0] for item in items]

    assert newcomer[0] == ["198.51.100.4"]
    assert again == [[f"198.51.100.{at}"] for at in range(4)]


class Books(RuleBasedStateMachine):
    """Services and pools come, change and go; an address has one user, or users that share it."""

    names = st.sampled_from("abcdef")

    def __init__(self) -> None:
        super().__init__()
        self.book = PoolBook()
        self.items: dict[str, dict[str, Any]] = {}
        self.given: dict[str, list[str]] = {}

    @rule(
        name=st.sampled_from(["blue", "red"]),
        cidr=st.sampled_from(["198.51.100.0/30", "198.51.100.4/31", "198.51.100.2/31"]),
        disabled=st.booleans(),
    )
    def put_pool(self, name: str, cidr: str, *, disabled: bool) -> None:
        self.book.put_pool(pool(name, cidr, disabled=disabled))
        self.settle_all()

    @rule(name=st.sampled_from(["blue", "red"]))
    def remove_pool(self, name: str) -> None:
        self.book.remove_pool(name)
        self.settle_all()

    @rule(
        name=names,
        wish=st.sampled_from(["", "", "198.51.100.1", "198.51.100.5,198.51.100.2"]),
        key=st.sampled_from(["", "one"]),
        port=st.sampled_from([80, 81]),
    )
    def put(self, name: str, wish: str, key: str, port: int) -> None:
        marks = {mark: value for mark, value in ((IPS, wish), (KEY, key)) if value}
        self.items[name] = balancer(name, annotations=marks, ports=[{"port": port}])
        self.settle_all()

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.items.pop(name, None)
        self.given.pop(name, None)
        self.book.release(("default", name))

    def settle_all(self) -> None:
        for name, item in self.items.items():
            self.given[name] = give(self.book, item)[0]

    @invariant()
    def an_address_has_one_user_per_port_and_key(self) -> None:
        users: dict[str, list[dict[str, Any]]] = {}
        for name, given in self.given.items():
            for one in given:
                users.setdefault(one, []).append(self.items[name])
        for address, items in users.items():
            assert self.book.users(ip_address(address)) == sorted(map(name_of, items))
            if len(items) > 1:
                assert all(item["metadata"]["annotations"].get(KEY) for item in items)
                ports = [item["spec"]["ports"][0]["port"] for item in items]
                assert len(ports) == len(set(ports))

    @invariant()
    def numbers_of_pools_are_right(self) -> None:
        given = {ip_address(one) for found in self.given.values() for one in found}
        for item in self.book.pools():
            numbers = {
                one.type: one.message
                for one in self.book.conditions_of_pool(item["metadata"]["name"])
            }
            inside = [one for one in given if _within(one, item["spec"]["blocks"][0]["cidr"])]
            assert numbers[USED] == str(len(inside))


def _within(one: Any, cidr: str) -> bool:
    from ipaddress import ip_network

    return one in ip_network(cidr)


Books.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase
