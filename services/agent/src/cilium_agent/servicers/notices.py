"""NoticeService: what hubble-server found out about pods, written as events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium.metadata.v1 import notices_pb2, notices_pb2_grpc
from cilium_core.resources.announcing import Announcer

from cilium_agent.errors import EndpointNotFoundError, RequestError

if TYPE_CHECKING:
    import grpc.aio
    from cilium_core.kvstore import Store

    from cilium_agent.endpoints.tables import EndpointTable

MAX_NOTICES = 64


class NoticeServicer(notices_pb2_grpc.NoticeServiceServicer):
    """Writes events about the endpoints in `table`, as the `node`'s hubble-server."""

    def __init__(self, table: EndpointTable, store: Store, node: str) -> None:
        self._table = table
        self._announcer = Announcer(store, "hubble-server", node)

    async def ReportNotices(  # noqa: N802 - the name is the proto's
        self,
        request: notices_pb2.ReportNoticesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> notices_pb2.ReportNoticesResponse:
        """See the proto."""
        del context
        if len(request.notices) > MAX_NOTICES:
            raise RequestError(f"notices: {len(request.notices)} of them, at most {MAX_NOTICES}")
        written = 0
        for notice in request.notices:
            try:
                endpoint = self._table.by_pod(notice.namespace, notice.pod_name)
            except EndpointNotFoundError:
                continue  # it is gone by now, or another node's
            subject = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": notice.namespace,
                    "name": notice.pod_name,
                    "uid": endpoint.pod_uid,
                },
            }
            times = max(1, notice.count)
            await self._announcer.announce(subject, notice.reason, notice.message, times)
            written += 1
        return notices_pb2.ReportNoticesResponse(written=written)
