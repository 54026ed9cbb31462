"""Requests of limited clients ask for what they may see, no more and no less."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cilium_core.access import METADATA_KEY, Limits
from cilium_core.errors import ForbiddenError
from cilium_core.flow_filters import FilterError, compile_filters
from flow import flow_pb2
from observer import observer_pb2

Filter = flow_pb2.FlowFilter
NAMESPACES = ("default", "shop", "bank", "")
PODS = ("web-1", "web-2", "db", "")


def limits(*namespaces: str) -> Limits:
    return Limits(frozenset(namespaces), "client x")


def flow(source: str, destination: str, port: int = 80) -> flow_pb2.Flow:
    """A flow between two `namespace/pod`."""
    made = flow_pb2.Flow()
    for end, name in ((made.source, source), (made.destination, destination)):
        end.namespace, _, end.pod_name = name.partition("/")
    made.l4.TCP.destination_port = port
    return made


def random_filter(chance: random.Random) -> flow_pb2.FlowFilter:
    names = ["shop/", "shop/web", "bank/db", "/web", "web-1", "default/", "/", "bank/x"]
    made = Filter()
    for field in (made.source_pod, made.destination_pod):
        if chance.random() < 0.5:
            field.extend(chance.sample(names, chance.randint(1, 3)))
    if chance.random() < 0.3:
        made.destination_port.append("80")
    return made


def test_a_narrowed_filter_lets_through_what_passes_it_and_touches_our_namespaces() -> None:
    chance = random.Random(7)
    for _ in range(400):
        ours = frozenset(chance.sample(NAMESPACES[:3], chance.randint(1, 2)))
        whitelist = [random_filter(chance) for _ in range(chance.randint(0, 3))]
        wanted = compile_filters(whitelist)
        try:
            narrowed = compile_filters(limits(*ours).filters(whitelist))
        except ForbiddenError:
            narrowed = compile_filters([Filter(uuid=["none"])])
        for _ in range(40):
            source, destination = (
                f"{chance.choice(NAMESPACES)}/{chance.choice(PODS)}" for _ in range(2)
            )
            seen = flow(source, destination, port=chance.choice([80, 81]))
            touches = not ours.isdisjoint({seen.source.namespace, seen.destination.namespace})
            assert narrowed(seen) == (wanted(seen) and touches)


def test_narrowing_twice_changes_nothing() -> None:
    once = limits("a", "b").filters(
        [Filter(source_pod=["/x"]), Filter(verdict=[flow_pb2.FORWARDED])]
    )
    assert limits("a", "b").filters(once) == once


def test_the_rest_of_a_request_stays() -> None:
    request = observer_pb2.GetFlowsRequest(
        number=5,
        follow=True,
        blacklist=[Filter(verdict=[flow_pb2.DROPPED])],
        whitelist=[Filter(verdict=[flow_pb2.FORWARDED])],
    )
    narrowed = limits("a").narrow(request)
    assert (narrowed.number, narrowed.follow) == (5, True)
    assert narrowed.blacklist == request.blacklist
    assert [list(one.verdict) for one in narrowed.whitelist] == [[flow_pb2.FORWARDED]] * 2
    assert len(request.whitelist) == 1


def test_flows_between_others_are_refused_by_their_name() -> None:
    request = [Filter(source_pod=["b/x"], destination_pod=["c/"])]
    with pytest.raises(ForbiddenError, match=r"client x may see namespace a only.*namespaces b, c"):
        limits("a").filters(request)
    with pytest.raises(ForbiddenError, match="client x may see no namespace"):
        limits().filters([])


def test_what_another_namespace_says_to_ours_may_be_seen() -> None:
    narrowed = limits("a").filters([Filter(source_pod=["b/"])])
    assert narrowed == [Filter(source_pod=["b/"], destination_pod=["a/"])]


def test_an_empty_name_is_still_a_mistake() -> None:
    with pytest.raises(FilterError, match="name must not be empty"):
        limits("a").filters([Filter(source_pod=["", "a/"])])


def test_limits_travel_as_one_text() -> None:
    assert limits("b", "a").metadata == (METADATA_KEY, "a,b")
    assert limits("a", "b").within(frozenset({"b", "c"})) == limits("b")


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        ({"endpoint_update": {"namespace": "a"}}, True),
        ({"endpoint_update": {"namespace": "b"}}, False),
        ({"ipcache_update": {"namespace": "a"}}, True),
        ({"ipcache_update": {"cidr": "10.0.0.0/8"}}, False),
        ({"policy_update": {"labels": ["k8s:io.cilium.k8s.policy.namespace=a"]}}, True),
        ({"policy_update": {"labels": ["k8s:io.cilium.k8s.policy.namespace=ab"]}}, False),
        ({"endpoint_regenerate": {"labels": ["k8s:io.kubernetes.pod.namespace=a"]}}, True),
        ({"service_upsert": {"namespace": "b"}}, False),
        ({"agent_start": {}}, True),
        ({"unknown": {"notification": "a"}}, False),
    ],
)
def test_events_of_the_agent_are_shown_by_the_namespace_they_concern(
    event: dict[str, Any], shown: bool
) -> None:
    assert limits("a").shows_agent_event(flow_pb2.AgentEvent(**event)) == shown


def test_debug_events_are_shown_by_their_endpoint() -> None:
    source = flow_pb2.Endpoint(namespace="a")
    assert limits("a").shows_debug_event(flow_pb2.DebugEvent(source=source))
    assert not limits("a").shows_debug_event(flow_pb2.DebugEvent())
