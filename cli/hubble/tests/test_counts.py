"""Counted flows as text."""

from cilium.flows.v1 import flows_pb2
from hubble_cli.printing.counts import show


def test_no_flow_in_a_window_is_said_and_what_was_not_seen_of_it():
    answer = flows_pb2.AggregateFlowsResponse(missing_nodes=["node3"])

    assert show(answer, ["source"], "table", seconds=10.0) == (
        "no such flow in the last 10 s\nnot seen: node3 did not answer\n"
    )
