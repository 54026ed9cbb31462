"""OperatorService: who leads, how the jobs fare, which node holds what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium.operator.v1 import operator_pb2 as pb
from cilium.operator.v1 import operator_pb2_grpc

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from cilium_operator.app import App


class StatusServicer(operator_pb2_grpc.OperatorServiceServicer):
    """Answers from what the app knows."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def GetStatus(  # noqa: N802 - gRPC's name
        self, _request: pb.GetStatusRequest, _context: Any
    ) -> pb.GetStatusResponse:
        """Give identity, leadership, jobs and pools; pools are known to the leader only."""
        app = self._app
        response = pb.GetStatusResponse(
            id=app.candidate, leader=app.leads, leader_id=app.leader, version=app.version
        )
        _set_time(response.started_at, app.started_at)
        for job in app.jobs:
            status = response.jobs.add(
                name=job.name, error=job.error, runs=job.runs, failures=job.failures
            )
            if job.last_success:
                _set_time(status.last_success, job.last_success)
        for pool in app.pool_usage():
            response.pools.add(
                cidr=str(pool.cidr),
                mask_size=pool.mask_size,
                total=min(pool.total, 2**64 - 1),
                used=pool.used,
            )
        return response

    async def ListAllocations(  # noqa: N802 - gRPC's name
        self, _request: pb.ListAllocationsRequest, _context: Any
    ) -> pb.ListAllocationsResponse:
        """Give the pod CIDRs of every node, from the store, whoever leads."""
        response = pb.ListAllocationsResponse()
        for record in await self._app.allocations():
            response.allocations.add(
                node=record.node, pod_cidrs=map(str, record.pod_cidrs), error=record.error
            )
        return response


def _set_time(stamp: Timestamp, seconds: float) -> None:
    stamp.FromNanoseconds(int(seconds * 1e9))
