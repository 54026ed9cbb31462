"""What hubble-server found out about pods of the node becomes Event objects that are counted up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from cilium.metadata.v1 import notices_pb2
from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.errors import RequestError
from cilium_agent.servicers.notices import NoticeServicer
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.resources.keys import kind_of

if TYPE_CHECKING:
    import grpc.aio

NOBODY = cast("grpc.aio.ServicerContext[Any, Any]", None)


def servicer(store: MemoryStore) -> NoticeServicer:
    table = EndpointTable()
    table.add(
        Endpoint(
            id=EndpointID(7),
            attachment=Attachment("c7", "/n", "eth0"),
            namespace="shop",
            pod_name="web",
            pod_uid="u-1",
            ipv4="10.0.0.7",
            ipv6="",
            state=State.READY,
        )
    )
    return NoticeServicer(table, store, "n1")


def notice(pod: str, message: str, count: int = 1) -> notices_pb2.Notice:
    return notices_pb2.Notice(
        namespace="shop", pod_name=pod, reason="PacketDrop", message=message, count=count
    )


async def events(store: MemoryStore) -> list[dict[str, Any]]:
    found = await store.list_prefix(kind_of("Event").prefix)
    return [json.loads(item.value) for item in found.items]


async def test_a_notice_is_a_warning_at_its_pod_and_equal_ones_are_counted() -> None:
    store = MemoryStore(MemoryCluster())
    served = servicer(store)
    for count in (1, 4):
        request = notices_pb2.ReportNoticesRequest(notices=[notice("web", "Dropped.", count)])
        assert (await served.ReportNotices(request, NOBODY)).written == 1

    (event,) = await events(store)
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "web",
        "namespace": "shop",
        "uid": "u-1",
    }
    assert (event["type"], event["reason"], event["message"]) == (
        "Warning",
        "PacketDrop",
        "Dropped.",
    )
    assert event["source"] == {"component": "hubble-server", "host": "n1"}
    assert event["count"] == 5


async def test_pods_of_other_nodes_get_no_events() -> None:
    store = MemoryStore(MemoryCluster())
    request = notices_pb2.ReportNoticesRequest(notices=[notice("other", "a"), notice("web", "b")])
    assert (await servicer(store).ReportNotices(request, NOBODY)).written == 1
    assert [event["message"] for event in await events(store)] == ["b"]


async def test_more_than_a_report_may_hold_is_refused() -> None:
    request = notices_pb2.ReportNoticesRequest(notices=[notice("web", "a")] * 65)
    with pytest.raises(RequestError, match="65 of them, at most 64"):
        await servicer(MemoryStore(MemoryCluster())).ReportNotices(request, NOBODY)
