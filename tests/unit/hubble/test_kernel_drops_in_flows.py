"""What the kernel dropped is a flow that says so, with the kernel's reason in words."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core import abi, drops
from cilium_core.flow_explanations import describe
from flow import flow_pb2

from tests.unit.hubble.loads import address_of, event
from tests.unit.hubble.pipelines import Pipeline

CODES = {reason.name: code for code, reason in drops.kernel_drops.items()}


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


def dropped(reason: str, **fields: Any) -> Any:
    return event(
        type=1,
        subtype=int(drops.DropReason["KERNEL"]),
        file=abi.constants["FILE_KERNEL"],
        line=CODES[reason],
        saddr=address_of(0),
        daddr=address_of(1),
        dport=80,
        **{"endpoint": 2, "proto": 6, "tcp_flags": 2, **fields},
    )


def test_the_summary_says_why_the_kernel_dropped_a_packet(pipeline: Pipeline) -> None:
    pipeline.feed(dropped("TCP_LISTEN_OVERFLOW"))

    (flow,) = pipeline.flows()
    assert (flow.verdict, flow.event_type.type, flow.drop_reason_desc) == (
        flow_pb2.DROPPED,
        1,
        flow_pb2.DROP_REASON_UNKNOWN,
    )
    assert flow.file.name == "kernel:TCP_LISTEN_OVERFLOW"
    assert flow.Summary == (
        "TCP Flags: SYN; TCP_LISTEN_OVERFLOW: The listening socket's queue is full"
    )
    assert (flow.source.pod_name, flow.destination.pod_name) == ("pod-0", "pod-1")
    assert flow.traffic_direction == flow_pb2.INGRESS


def test_drops_for_several_reasons_do_not_share_a_summary(pipeline: Pipeline) -> None:
    for reason in ("NO_SOCKET", "NETFILTER_DROP", "RECURSION_LIMIT"):
        pipeline.feed(dropped(reason, proto=17, tcp_flags=0))

    summaries = [flow.Summary.partition(":")[0] for flow in pipeline.flows()]
    assert summaries == ["UDP; NO_SOCKET", "UDP; NETFILTER_DROP", "UDP; RECURSION_LIMIT"]


def test_drops_that_were_left_out_are_lost_events(pipeline: Pipeline) -> None:
    pipeline.feed(dropped("NO_SOCKET", cookie=7))

    losses = [each.lost_events for each in pipeline.responses() if each.HasField("lost_events")]
    assert [loss.num_events_lost for loss in losses] == [7]


def test_the_explanation_of_a_kernels_drop_says_what_can_be_done(pipeline: Pipeline) -> None:
    pipeline.feed(dropped("TCP_LISTEN_OVERFLOW"))

    answer = describe(pipeline.flows()[0], "node1")

    assert "TCP_LISTEN_OVERFLOW" in answer.conclusion
    assert answer.drop.meaning == "The kernel dropped it: The listening socket's queue is full."
    assert "net.core.somaxconn" in answer.drop.remedy
