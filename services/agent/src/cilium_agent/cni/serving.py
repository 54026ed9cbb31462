"""The CNI socket: HTTP requests of the plugin to the provisioner and back.

Domain errors become CNI codes here and nowhere else. Requests that arrive while the agent starts
wait for it for a while, so that a pod created in the very second of a restart is not refused.
"""

from __future__ import annotations

import asyncio
import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError, UnavailableError
from cilium_core.serving.http_server import HttpServer, Request, Response
from cilium_core.telemetry import get_logger, histogram

from cilium_agent.cni import requests, results
from cilium_agent.datapath.errors import NamespaceError
from cilium_agent.errors import (
    EndpointError,
    NotStartedError,
    PodLinkError,
    PodNotFoundError,
    RequestError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cilium_agent.endpoints.provisioning import Provisioner
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.endpoints.tables import EndpointTable

START_WAIT_S = 20.0

log = get_logger()

REQUEST_SECONDS = histogram(
    "cilium_cni_request_duration_seconds", "Time to answer the CNI plugin.", "verb", "outcome"
)

# The first class that matches decides: (CNI code, HTTP status).
_CODES: tuple[tuple[type[Exception], int, HTTPStatus], ...] = (
    (RequestError, results.INVALID_REQUEST, HTTPStatus.BAD_REQUEST),
    (NamespaceError, results.INVALID_REQUEST, HTTPStatus.BAD_REQUEST),
    (NotStartedError, results.TRY_AGAIN, HTTPStatus.SERVICE_UNAVAILABLE),
    (PodNotFoundError, results.TRY_AGAIN, HTTPStatus.SERVICE_UNAVAILABLE),
    (UnavailableError, results.TRY_AGAIN, HTTPStatus.SERVICE_UNAVAILABLE),
    (TimeoutError, results.TRY_AGAIN, HTTPStatus.SERVICE_UNAVAILABLE),
    (PodLinkError, results.MISMATCH, HTTPStatus.CONFLICT),
    (EndpointError, results.UNHEALTHY, HTTPStatus.CONFLICT),
    (CiliumError, results.INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR),
)


class Started:
    """Whether pods can be served; those who ask wait for it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether pods can be served now."""
        return self._event.is_set() and not self.stopping

    def set(self) -> None:
        """Pods can be served from now on."""
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when pods can be served; `NotStartedError` after `timeout_s`."""
        if self.stopping:
            raise NotStartedError("the agent is stopping")
        if self._event.is_set():
            return
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError as error:
            raise NotStartedError(
                "the agent is still starting; `cilium status` says what it waits for"
            ) from error


class CNIService:
    """The verbs."""

    def __init__(
        self,
        *,
        started: Started,
        table: EndpointTable,
        provisioner: Callable[[], Provisioner],
        check: Callable[[Endpoint], Awaitable[None]],
        gateways: Callable[[], tuple[str, str]],
        trouble: Callable[[], str],
    ) -> None:
        """Take what the verbs need.

        `check` raises where a pod's interface is not as it was made; `trouble` is empty while pods
        can be created.
        """
        self._started = started
        self._table = table
        self._provisioner = provisioner
        self._check = check
        self._gateways = gateways
        self._trouble = trouble

    def routes(self, server: HttpServer) -> None:
        """Add the verbs to a server."""
        server.route("POST", "/v1/cni/add", self._verb("add", self._add))
        server.route("POST", "/v1/cni/del", self._verb("del", self._del))
        server.route("POST", "/v1/cni/check", self._verb("check", self._check_pod))
        server.route("GET", "/v1/cni/status", self._verb("status", self._status))

    async def _add(self, request: Request) -> dict[str, object]:
        asked = requests.parse(request.body, pod_required=True)
        await self._started.wait(START_WAIT_S)
        endpoint = await self._provisioner().add(asked)
        return results.added(endpoint, *self._gateways())

    async def _del(self, request: Request) -> dict[str, object]:
        asked = requests.parse(request.body, pod_required=False)
        await self._started.wait(START_WAIT_S)
        await self._provisioner().delete(asked)
        return {}

    async def _check_pod(self, request: Request) -> dict[str, object]:
        asked = requests.parse(request.body, pod_required=True)
        await self._started.wait(START_WAIT_S)
        endpoint = self._table.find(asked.attachment)
        if endpoint is None:
            raise EndpointError(
                f"container {asked.attachment.container_id} has no endpoint on this node"
            )
        if endpoint.error:
            raise EndpointError(f"endpoint {endpoint.id} is unhealthy: {endpoint.error}")
        await self._check(endpoint)
        return {}

    async def _status(self, _request: Request) -> dict[str, object]:
        await self._started.wait(0)
        if trouble := self._trouble():
            raise NotStartedError(trouble)
        return {}

    def _verb(
        self, name: str, action: Callable[[Request], Awaitable[dict[str, object]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            began = time.perf_counter()
            outcome = "fail"
            try:
                answer = await action(request)
                outcome = "success"
                return _json(answer, HTTPStatus.OK)
            except Exception as error:  # the runtime must get an answer it can read
                code, status = _classify(error)
                if code == results.INTERNAL:
                    log.exception("CNI request failed", verb=name)
                elif name != "status":
                    log.warning("CNI request refused", verb=name, code=code, error=str(error))
                return _json(results.failed(code, str(error) or type(error).__name__), status)
            finally:
                REQUEST_SECONDS.observe(time.perf_counter() - began, name, outcome)

        return handle


def _classify(error: Exception) -> tuple[int, HTTPStatus]:
    for kind, code, status in _CODES:
        if isinstance(error, kind):
            return code, status
    return results.INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR


def _json(document: dict[str, object], status: HTTPStatus) -> Response:
    return Response(status, json.dumps(document).encode() + b"\n")
