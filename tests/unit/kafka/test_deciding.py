"""Which requests rules let pass."""

from __future__ import annotations

import pytest
from cilium_core.policy.kafka_keys import ROLES
from cilium_core.policy.l7 import KafkaRule, L7Kind, Redirect
from flow import flow_pb2
from kafka_proxy.deciding import allows
from kafka_proxy.gates import Gate
from kafka_proxy.requests import parse

from tests.unit.kafka.messages import (
    API_VERSIONS,
    ENVELOPE,
    FETCH,
    FIND_COORDINATOR,
    JOIN_GROUP,
    METADATA,
    PRODUCE,
    metadata,
    produce,
    request,
)

Rule = KafkaRule
PRODUCER, CONSUMER = ROLES["produce"], ROLES["consume"]
BY_ID = request(FETCH, 13, topics=[{"topic_id": bytes(range(16)), "partitions": []}])
UNREADABLE = b"\0\0\0\2\0\0\0\1\xff\xff"
"""A write in a version that nobody reads any more."""


@pytest.mark.parametrize(
    ("rules", "whole", "passes"),
    [
        ([], metadata("a"), False),
        ([Rule()], metadata("a"), True),
        ([Rule()], UNREADABLE, True),
        ([Rule()], request(ENVELOPE, 0), True),
        # kind of request
        ([Rule(frozenset({METADATA}))], metadata("a"), True),
        ([Rule(frozenset({METADATA}))], produce("a"), False),
        ([Rule(PRODUCER)], produce("a"), True),
        ([Rule(PRODUCER)], request(API_VERSIONS, 3), True),
        ([Rule(PRODUCER)], request(FETCH, 12), False),
        ([Rule(CONSUMER)], request(FETCH, 12), True),
        ([Rule(CONSUMER)], request(JOIN_GROUP, 5), True),
        ([Rule(CONSUMER)], produce("a"), False),
        # version
        ([Rule(api_version=9)], metadata("a", version=9), True),
        ([Rule(api_version=9)], metadata("a", version=8), False),
        ([Rule(api_version=0)], metadata("a", version=8), False),
        # client
        ([Rule(client_id="me")], metadata("a"), True),
        ([Rule(client_id="ME")], metadata("a"), False),
        ([Rule(client_id="me")], request(METADATA, 9, client_id=None), False),
        ([Rule(client_id="me")], request(METADATA, 9, client_id=""), False),
        # topics
        ([Rule(topic="a")], produce("a"), True),
        ([Rule(topic="a")], produce("b"), False),
        ([Rule(topic="a")], produce("A"), False),
        ([Rule(topic="a")], produce("a", "b"), False),
        ([Rule(topic="a"), Rule(topic="b")], produce("a", "b"), True),
        ([Rule(topic="a"), Rule(topic="b", client_id="other")], produce("a", "b"), False),
        ([Rule(PRODUCER, topic="a"), Rule(CONSUMER, topic="b")], produce("b"), False),
        ([Rule(PRODUCER, topic="a"), Rule(CONSUMER, topic="b")], metadata("a", "b"), True),
        ([Rule(topic="a"), Rule(frozenset({PRODUCE}))], produce("z"), True),
        # requests that name none
        ([Rule(topic="a")], request(METADATA, 9, topics=None), True),
        ([Rule(topic="a")], request(API_VERSIONS, 3), True),
        ([Rule(CONSUMER, topic="a")], request(FIND_COORDINATOR, 3), True),
        ([Rule(CONSUMER, topic="a")], request(JOIN_GROUP, 5), True),
        # requests whose topics are not known
        ([Rule(topic="a")], BY_ID, False),
        ([Rule(CONSUMER)], BY_ID, True),
        ([Rule(topic="a")], UNREADABLE, False),
        ([Rule(topic="a")], request(ENVELOPE, 0), False),
        ([Rule(topic="a")], metadata("a") + b"\0", False),
    ],
)
def test_rules_let_exactly_these_pass(rules: list[Rule], whole: bytes, passes: bool) -> None:
    assert passes == allows(rules, parse(whole))


@pytest.mark.parametrize(
    ("allow_all", "audit", "topic", "verdict", "enforcing"),
    [
        (False, False, "a", flow_pb2.FORWARDED, True),
        (False, False, "b", flow_pb2.DROPPED, True),
        (False, True, "a", flow_pb2.FORWARDED, False),
        (False, True, "b", flow_pb2.AUDIT, False),
        (True, False, "b", flow_pb2.FORWARDED, False),
    ],
)
def test_a_gate_refuses_only_where_it_enforces(
    allow_all: bool, audit: bool, topic: str, verdict: int, enforcing: bool
) -> None:
    rules = (Rule(topic="a"),)
    gate = Gate(1, Redirect(False, L7Kind.KAFKA, kafka=rules, allow_all=allow_all, audit=audit))
    assert (verdict, enforcing) == (gate.verdict(parse(produce(topic))), gate.enforcing)
