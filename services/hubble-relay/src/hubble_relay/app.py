"""Wiring and life cycle of the relay; the only module that knows all others."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from cilium_core.access import Access
from cilium_core.errors import InvalidError
from cilium_core.files import versions_of
from cilium_core.flow_filters import FilterLimitError
from cilium_core.serving.packed import (
    PackedServer,
    Quotas,
    Status,
    keep_certificate,
    server_context,
)
from cilium_core.serving.programs import own_version
from cilium_core.serving.sockets import stop_signal
from cilium_core.telemetry import REGISTRY, Health, get_logger

from hubble_relay.collecting import CollectingOptions
from hubble_relay.connections import ClientTls, Pool, dial
from hubble_relay.peers import Directory, PeerWatcher
from hubble_relay.servicers.explanations import EXPLANATIONS, ExplanationServicer
from hubble_relay.servicers.flows import FlowsServicer
from hubble_relay.servicers.observer import ObserverServicer
from hubble_relay.servicers.states import STATES, StateServicer

if TYPE_CHECKING:
    import ssl

    import grpc.aio
    from cilium_core.serving.http_server import HttpServer

    from hubble_relay.settings import RelaySettings

log = get_logger()

OBSERVER_HEALTH = "hubble.server.Observer"
"""The name under which Hubble clients ask for health."""

_STOP_GRACE_S = 2.0
_CERTIFICATE_INTERVAL_S = 10.0

_UNSENT_OF_CLIENT = 512 << 20
"""Bytes that may wait for one client to read them, those of the nodes' streams included."""


class Relay:
    """A running relay. Use `start`, then `stop`, within one event loop."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._tls = self._client_tls()
        self.directory = Directory()
        self.pool = Pool(self._tls, settings.peer_streams_max)
        self._watchers: list[asyncio.Task[None]] = []
        self._servers: list[PackedServer] = []
        self._metrics: HttpServer | None = None
        self.ports: list[int] = []
        """TCP ports that are listened on, in the order of the addresses."""
        self._health = Health()

    def _client_tls(self) -> ClientTls | None:
        settings = self._settings
        if settings.disable_client_tls:
            return None
        try:
            return ClientTls.read(
                settings.tls_hubble_server_ca_files,
                settings.tls_hubble_client_cert_file,
                settings.tls_hubble_client_key_file,
            )
        except OSError as error:
            raise InvalidError(f"TLS file {error.filename}: {error.strerror}") from error

    def _server_tls(self) -> ssl.SSLContext | None:
        settings = self._settings
        certificate = settings.tls_relay_server_cert_file
        key = settings.tls_relay_server_key_file
        if settings.disable_server_tls or certificate is None or key is None:
            return None
        authorities = settings.tls_relay_client_ca_files
        context = server_context(certificate, key, authorities)
        following = keep_certificate(context, certificate, key, authorities)
        self._watchers.append(asyncio.create_task(following))
        return context

    async def _follow_client_tls(self) -> None:
        """Show peers the certificate that is in the files, and believe the authorities in them."""
        settings = self._settings
        given = (settings.tls_hubble_client_cert_file, settings.tls_hubble_client_key_file)
        files = [path for path in (*settings.tls_hubble_server_ca_files, *given) if path]
        seen = versions_of(files)
        while True:
            await asyncio.sleep(_CERTIFICATE_INTERVAL_S)
            if (now := versions_of(files)) == seen:
                continue
            seen = now
            try:
                self._tls = self._client_tls()
            except InvalidError as error:
                log.error("certificate for peers stays as it is", reason=str(error))
                continue
            if self._tls is not None:
                self.pool.use(self._tls)
            log.info("certificate for peers loaded again")

    async def start(self) -> None:
        """Begin to serve, whatever the peers do. Raises CiliumError when an address is not free."""
        main = self._main_server()
        self._servers.append(main)
        if self._settings.health_listen_address:
            self._servers.append(PackedServer())
        self.pool.on_change(self._tell_health)
        self.directory.on_change(self.pool.replace)
        tls = self._server_tls()
        for address in self._settings.listen_address:
            if address.startswith("unix:"):
                await main.listen(address)
            else:
                self.ports.append(await main.listen_tcp(address, tls))
            log.info("listening", address=address, tls=tls is not None)
        if self._settings.health_listen_address:
            await self._servers[1].listen(self._settings.health_listen_address)
        if self._settings.metrics_listen_address:
            await self._serve_metrics()
        if self._tls is not None:
            self._watchers.append(asyncio.create_task(self._follow_client_tls()))
        for source in self._settings.peer_service:
            watcher = PeerWatcher(
                source, self.directory, self._dial_service, float(self._settings.retry_timeout)
            )
            self._watchers.append(asyncio.create_task(watcher.run()))

    def _main_server(self) -> PackedServer:
        settings = self._settings
        relay_version = own_version("hubble-relay")
        options = CollectingOptions(
            own_name=socket.gethostname(),
            sort_buffer_len_max=settings.sort_buffer_len_max,
            drain_timeout_s=float(settings.sort_buffer_drain_timeout),
        )
        flows = FlowsServicer(self.pool, options)
        observer = ObserverServicer(self.pool, relay_version)
        access = Access(settings.access_file)
        self._watchers.append(asyncio.create_task(access.watch()))
        server = PackedServer(
            metadata={"hubble-relay-version": relay_version},
            statuses={FilterLimitError: Status.RESOURCE_EXHAUSTED},
            guard=access,
            quotas=Quotas(unsent_of_client=_UNSENT_OF_CLIENT),
        )
        server.add("observer.Observer", observer.methods() | flows.public_methods())
        server.add("cilium.flows.v1.FlowsService", flows.batch_methods())
        server.add(EXPLANATIONS, ExplanationServicer(self.pool).methods())
        server.add(STATES, StateServicer(self.pool).methods())
        return server

    async def _serve_metrics(self) -> None:
        from cilium_core.serving.observability import observability_server

        self._health.add("peers", lambda: "" if self.ready else "no peer can be reached")
        server = observability_server(self._health, registry=REGISTRY)
        self._metrics = server
        await server.listen_tcp(self._settings.metrics_listen_address)

    def _dial_service(self, target: str) -> grpc.aio.Channel:
        if self._tls is None or target.startswith("unix:"):
            return dial(target, None, None)
        cluster = self._settings.cluster_name.replace(".", "-")
        return dial(target, self._tls, f"hubble-peer.{cluster}.hubble-grpc.cilium.io")

    @property
    def ready(self) -> bool:
        """Whether some peer service and some peer can be reached."""
        return bool(self.directory.connected) and any(
            connection.available for connection in self.pool.connections
        )

    def _tell_health(self) -> None:
        for server in self._servers:
            for name in ("", OBSERVER_HEALTH):
                server.health.set(name, serving=self.ready)

    async def run(self) -> None:
        """Serve until the process is asked to stop."""
        stop = stop_signal()
        await self.start()
        # Streams of peer services come and go without any connection changing.
        while not stop.is_set():
            self._tell_health()
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await stop.wait()
        await self.stop()

    async def stop(self) -> None:
        """End all streams and close all connections."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(server.stop(_STOP_GRACE_S) for server in self._servers))
        if self._metrics is not None:
            await self._metrics.stop()
        await self.pool.close()
        log.info("stopped")
