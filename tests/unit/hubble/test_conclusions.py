"""What is said of a flow's verdict, by the flow alone."""

from __future__ import annotations

from typing import Any

import pytest
from cilium.agent.v1 import agent_pb2
from cilium_core.flow_explanations import changes, conclusion, describe
from flow import flow_pb2

ENDS: dict[str, Any] = {
    "source": flow_pb2.Endpoint(namespace="shop", pod_name="web"),
    "IP": flow_pb2.IP(source="10.0.0.1", destination="10.0.0.2"),
    "l4": flow_pb2.Layer4(TCP=flow_pb2.TCP(source_port=4000, destination_port=80)),
}
ALLOWING = [flow_pb2.Policy(kind="CiliumNetworkPolicy", namespace="shop", name="web")]
HTTP = flow_pb2.HTTP(method="GET", url="http://x/")
OUT, IN = flow_pb2.EGRESS, flow_pb2.INGRESS


def flow(**fields: Any) -> flow_pb2.Flow:
    return flow_pb2.Flow(**(ENDS | fields))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (
            flow(verdict="DROPPED", drop_reason=181, traffic_direction=OUT),
            "Policy dropped it at shop/web (egress), because a rule denies it.",
        ),
        (
            flow(verdict="DROPPED", drop_reason=158, file=flow_pb2.FileInfo(name="lb.h", line=3)),
            "It was dropped: Service backend not found (lb.h:3).",
        ),
        (
            flow(
                verdict="FORWARDED",
                event_type=flow_pb2.CiliumEventType(type=5),
                traffic_direction=IN,
                ingress_allowed_by=ALLOWING,
            ),
            (
                "Policy let it pass at 10.0.0.2 (ingress), because of CiliumNetworkPolicy shop/web"
                " (allows)."
            ),
        ),
        (
            flow(verdict="REDIRECTED", proxy_port=15001),
            "It passed and went to a proxy at port 15001, which decides about requests.",
        ),
        (
            flow(verdict="AUDIT"),
            "Policy would have dropped it, but only reports (audit mode).",
        ),
        (
            flow(verdict="DROPPED", l7=flow_pb2.Layer7(type="REQUEST", http=HTTP), Summary="GET /"),
            "A proxy refused the request, as no rule about requests allows it: GET /.",
        ),
        (
            flow(verdict="FORWARDED", l7=flow_pb2.Layer7(type="RESPONSE", http=HTTP), Summary="OK"),
            "It is the answer to a request that went to a proxy: OK.",
        ),
    ],
)
def test_a_verdict_is_put_into_words(seen: flow_pb2.Flow, said: str) -> None:
    assert said == conclusion(seen)


def test_an_answer_is_told_from_the_connections_side() -> None:
    reply = flow(verdict="FORWARDED", traffic_direction=OUT, is_reply={"value": True})
    reply.source.Clear()
    reply.destination.MergeFrom(ENDS["source"])

    assert conclusion(reply).startswith("It was forwarded at shop/web (egress)")


def test_frames_that_are_no_packets_are_told_by_their_ethernet_addresses() -> None:
    frame = flow_pb2.Flow(
        verdict=flow_pb2.DROPPED,
        drop_reason=203,
        traffic_direction=OUT,
        ethernet=flow_pb2.Ethernet(source="02:00:00:00:00:01", destination="33:33:00:00:00:16"),
    )

    answer = describe(frame, "node1")

    assert answer.conclusion.startswith("It was dropped at 02:00:00:00:00:01 (egress): ")
    assert answer.drop.remedy


def test_a_reason_that_nobody_knows_is_told_as_such() -> None:
    answer = describe(flow(verdict="DROPPED", drop_reason=249), "node1")

    assert answer.drop.text == "reason 249"
    assert "not in the list" in answer.drop.meaning


@pytest.mark.parametrize(
    ("verdict", "kind", "allowed_now", "told"),
    [
        ("FORWARDED", "REQUEST", False, True),
        ("FORWARDED", "RESPONSE", False, False),
        ("DROPPED", "REQUEST", True, True),
        ("DROPPED", "REQUEST", False, False),
        ("FORWARDED", "REQUEST", True, False),
    ],
)
def test_policies_that_judge_otherwise_now_have_changed(
    verdict: str, kind: str, allowed_now: bool, told: bool
) -> None:
    seen = flow(verdict=verdict, traffic_direction=IN, l7=flow_pb2.Layer7(type=kind, http=HTTP))
    now = agent_pb2.ExplainPolicyResponse(
        revision=3, ingress=agent_pb2.ExplainedDirection(allowed=allowed_now)
    )

    assert told == any("revision 3" in note for note in changes(seen, now))
