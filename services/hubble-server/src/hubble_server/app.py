"""Wiring and life cycle of hubble-server: the one place that knows everything.

Threads: the ingest thread writes the store and the directory; the event loop serves. Start-up needs
neither the agent nor its events map: both are waited for while serving what is there.
"""

from __future__ import annotations

import asyncio
import grp
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from cilium.metadata.v1 import metadata_pb2
from cilium_core.access import Access
from cilium_core.errors import InvalidError
from cilium_core.serving.observability import observability_server
from cilium_core.serving.packed import PackedServer, keep_certificate, server_context
from cilium_core.serving.sockets import split_address, stop_signal
from cilium_core.telemetry import REGISTRY, Health, get_logger, pushing_metrics

from hubble_server.agents import AgentClient
from hubble_server.errors import STATUSES
from hubble_server.explaining import Explainer
from hubble_server.exporting.exporters import Feed
from hubble_server.exporting.starting import exports
from hubble_server.facts import VERSION, NodeFacts
from hubble_server.flows.store import FlowStore
from hubble_server.ingest import LOST, Ingest, Snapshot
from hubble_server.metadata.client import MetadataClient
from hubble_server.metadata.directory import Directory
from hubble_server.metrics.configuring import MetricsFile, parse_static
from hubble_server.metrics.contexts import MetricsConfigError
from hubble_server.metrics.counting import Counted, FlowMetrics
from hubble_server.metrics.exposing import FlowRegistry, MetricsEndpoint
from hubble_server.peers import PeerBook, PeerSettings
from hubble_server.recording.capturing import switch_off
from hubble_server.recording.files import mend
from hubble_server.recording.recordings import Recordings
from hubble_server.ring.positions import ReadPositions
from hubble_server.ring.reading import EventReader
from hubble_server.servicers.explanations import EXPLANATIONS, ExplanationService
from hubble_server.servicers.flows import FLOWS_SERVICE, FlowStreams
from hubble_server.servicers.observer import OBSERVER, ObserverService
from hubble_server.servicers.peers import PEER, PeerService
from hubble_server.servicers.recorder import PACKETS, RECORDER, RecorderService, Storage
from hubble_server.servicers.states import STATES, StateService
from hubble_server.servicers.streaming import NewEvents
from hubble_server.translations import Translations

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine, Sequence
    from pathlib import Path
    from typing import Any

    from hubble_server.history.answering import Past
    from hubble_server.history.statelog import StateLog
    from hubble_server.ingest import Source
    from hubble_server.settings import ServerSettings

_log = get_logger()

VERSION_HEADER = "hubble-server-version"
HEALTH_NAME = "hubble.server.Observer"
RING_HEALTH_NAME = "hubble.server.Ring"
"""Health name that serves once the kernel writes into our buffers."""

_STATES_SHARE = 8
"""Of the room of the history, states take at most this part beside it."""

_SOCKET_GROUP = "cilium"
_NAMES_WAIT_S = 1.0
"""How long events may wait for the agent's names at start; the ring holds them meanwhile."""

_CHECK_INTERVAL_S = 0.5
_METRICS_INTERVAL_S = 10.0


class App:
    """A hubble-server. `source` replaces the kernel's ring in tests."""

    def __init__(self, settings: ServerSettings, source: Source | None = None) -> None:
        self._settings = settings
        self._reader: EventReader | None = None
        self._positions = ReadPositions(settings.state_dir / "hubble-events-read")
        if source is None:
            source = self._reader = EventReader(
                settings.bpf_root,
                interval_s=settings.hubble_poll_interval,
                positions=self._positions,
            )
        self.node = NodeFacts(settings.node_name, settings.cluster_name)
        self.store = FlowStore(settings.hubble_event_buffer_capacity)
        self.directory = Directory()
        self.metrics = FlowMetrics(self.directory, lambda: self.node)
        self.ingest = Ingest(
            source,
            self.store,
            self.directory,
            lambda: self.node,
            lost_interval_s=settings.hubble_lost_event_send_interval,
            redaction=settings.redaction,
            metrics=self.metrics,
            processed=self._reader.processed if self._reader is not None else None,
        )
        self.peers = PeerBook(
            PeerSettings(
                port=_port(settings.hubble_listen_address),
                prefer_ipv6=settings.hubble_prefer_ipv6,
                tls=not settings.hubble_disable_tls,
            )
        )
        self.peers.upsert(self._own_node(()))
        self._states: StateLog | None = None
        self.metadata = MetadataClient(settings.metadata_path, self)
        self.tcp_port = 0
        """Port of the TCP listener once it listens, 0 without one."""
        self.metrics_port = 0
        """Port of the metrics of flows once they are served, 0 without."""

    # ---- what the agent says, on the event loop ----

    def replace(self, updates: Sequence[metadata_pb2.Update]) -> None:
        """Take a snapshot of the agent."""
        nodes = [update.node for update in updates if update.HasField("node")]
        for update in updates:
            if update.HasField("local_node"):
                self._set_local_node(update.local_node)
        if not any(self._is_own(node) for node in nodes):
            nodes.append(self._own_node(self.node.addresses))
        self.peers.replace(nodes)
        self.ingest.tell(Snapshot(updates))
        if self._states is not None:
            self._states.replace(updates)

    def update(self, update: metadata_pb2.Update) -> None:
        """Take one change of the agent."""
        if self._states is not None:
            self._states.update(update)
        match update.WhichOneof("update"):
            case "local_node":
                self._set_local_node(update.local_node)
                self.peers.upsert(self._own_node(self.node.addresses))
            case "node":
                self.peers.upsert(update.node)
            case "node_deleted":
                self.peers.delete(update.node_deleted)
            case _:
                self.ingest.tell(update)

    def _set_local_node(self, node: metadata_pb2.LocalNode) -> None:
        self.node = replace(
            self.node,
            name=node.name or self.node.name,
            cluster=node.cluster or self.node.cluster,
            labels=tuple(sorted(node.labels)),
            addresses=tuple(node.addresses),
        )

    def _is_own(self, node: metadata_pb2.Node) -> bool:
        return node.name == self.node.name and node.cluster in ("", self.node.cluster)

    def _own_node(self, addresses: Sequence[str]) -> metadata_pb2.Node:
        return metadata_pb2.Node(
            name=self.node.name, cluster=self.node.cluster, addresses=addresses
        )

    # ---- life cycle ----

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = stop_signal()
        async with self:
            await stop.wait()
            _log.info("stopping")

    async def __aenter__(self) -> App:
        self._stack = AsyncExitStack()
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        stack = self._stack
        if self._reader is not None:
            stack.callback(self._reader.close)
        past = self._keep_history()
        stack.push_async_callback(asyncio.to_thread, self.ingest.stop)
        new_events = NewEvents(self.store)
        stack.callback(new_events.stop)
        server = self._server(new_events, past)
        stack.push_async_callback(server.stop)
        await self._listen(server)
        await self._count_flows()
        self._export(Feed(self.store, self.directory, lambda: self.node, new_events))
        self._keep(self.metadata.run())
        self._keep(self._begin_ingest())
        self._keep(self._watch_ring(server))
        if self._settings.hubble_observability_address:
            await self._observe()
        _log.info(
            "serving flows",
            socket=str(self._settings.socket_path),
            address=self._settings.hubble_listen_address or None,
            capacity=self.store.capacity,
            version=VERSION,
        )

    def _keep_history(self) -> Past | None:
        """Begin to keep flows on disk as configured; ends after the ingest thread."""
        settings = self._settings
        if settings.hubble_history_dir is None:
            return None
        # what reads and writes Parquet takes memory, which only those pay who use it
        from hubble_server.history.answering import Past
        from hubble_server.history.statelog import StateLimits, StateLog
        from hubble_server.history.writing import History, Limits

        limits = Limits(
            max_bytes=settings.hubble_history_max_size_mb << 20,
            max_age_s=settings.hubble_history_max_age,
            rotate_s=settings.hubble_history_rotate_interval,
        )
        history = History(
            settings.hubble_history_dir, limits, self.store, self.directory, lambda: self.node
        )
        history.start()
        self._positions.kept = lambda: history.position
        self._stack.push_async_callback(asyncio.to_thread, history.stop)
        states = StateLimits(
            max_bytes=limits.max_bytes // _STATES_SHARE, max_age_s=limits.max_age_s
        )
        self._states = StateLog(history.path, states, lambda: self.metadata.connected)
        self._states.start()
        self._stack.push_async_callback(asyncio.to_thread, self._states.stop)
        return Past(history, self.store)

    def _server(self, new_events: NewEvents, past: Past | None) -> PackedServer:
        access = Access(self._settings.hubble_access_file)
        self._keep(access.watch())
        server = PackedServer(metadata={VERSION_HEADER: VERSION}, statuses=STATUSES, guard=access)
        streams = FlowStreams(
            self.store,
            self.directory,
            self.ingest,
            lambda: self.node,
            new_events,
            lost_interval_s=self._settings.hubble_lost_event_send_interval,
            past=past,
        )
        observer = ObserverService(
            streams, self.store, self.directory, self.ingest, lambda: self.node, new_events
        )
        server.add(OBSERVER, observer.methods())
        server.add(FLOWS_SERVICE, streams.methods())
        explainer = Explainer(AgentClient(self._settings.agent_path), Translations(streams))
        explanations = ExplanationService(streams, explainer, lambda: self.node)
        server.add(EXPLANATIONS, explanations.methods())
        states = StateService(self._settings.hubble_history_dir, lambda: self.node)
        server.add(STATES, states.methods())
        server.add(PEER, PeerService(self.peers).methods())
        if self._settings.enable_hubble_recorder_api:
            self._serve_packets(server)
        server.health.set(HEALTH_NAME, serving=True)
        server.health.set(RING_HEALTH_NAME, serving=self._reader is None)
        return server

    def _serve_packets(self, server: PackedServer) -> None:
        """Offer to record packets, to files and to clients."""
        settings = self._settings
        switch_off(settings.bpf_root)
        mend(settings.recorder_path)
        recordings = Recordings(settings.bpf_root, lambda: self.ingest.clock.offset_ns)
        self._stack.push_async_callback(asyncio.to_thread, recordings.stop)
        storage = Storage(
            settings.recorder_path,
            settings.hubble_recorder_file_max_size_mb << 20,
            settings.hubble_recorder_file_max_backups + 1,
        )
        recorder = RecorderService(recordings, storage, lambda: self.node)
        server.add(RECORDER, recorder.recorder_methods())
        server.add(PACKETS, recorder.packets_methods())

    async def _listen(self, server: PackedServer) -> None:
        settings = self._settings
        await server.listen_unix(settings.socket_path)
        _give_to_group(settings.socket_path)
        if settings.hubble_listen_address:
            self.tcp_port = await server.listen_tcp(
                settings.hubble_listen_address, self._tls_context()
            )

    def _tls_context(self) -> ssl.SSLContext | None:
        settings = self._settings
        if settings.hubble_disable_tls:
            return None
        certificate, key = settings.hubble_tls_cert_file, settings.hubble_tls_key_file
        if certificate is None or key is None:
            raise InvalidError("TLS needs hubble-tls-cert-file and hubble-tls-key-file")
        authorities = settings.hubble_tls_client_ca_files
        context = server_context(certificate, key, authorities)
        self._keep(keep_certificate(context, certificate, key, authorities))
        return context

    async def _begin_ingest(self) -> None:
        """Start reading once there are names for what is waiting in the ring, or none in sight."""
        if self._reader is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_NAMES_WAIT_S):
                    await self.metadata.known.wait()
        self.ingest.start()

    async def _watch_ring(self, server: PackedServer) -> None:
        """Tell through health whether the kernel writes into our buffers."""
        told = self._reader is None
        while self._reader is not None:
            if self._reader.attached != told:
                told = self._reader.attached
                server.health.set(RING_HEALTH_NAME, serving=told)
            await asyncio.sleep(_CHECK_INTERVAL_S if told else _CHECK_INTERVAL_S / 10)

    async def _observe(self) -> None:
        health = Health()
        if (reader := self._reader) is not None:
            health.add("ring", lambda: "" if reader.attached else "no events map to read from")
        http = observability_server(health, registry=REGISTRY)
        await http.listen_tcp(self._settings.hubble_observability_address)
        self._stack.push_async_callback(http.stop)

    def _export(self, feed: Feed) -> None:
        """Begin to bring flows elsewhere as configured."""
        for work in exports(self._settings, feed):
            self._keep(work)

    async def _count_flows(self) -> None:
        """Begin to count flows as configured, and serve the counts."""
        settings = self._settings
        if not (settings.hubble_metrics_server or settings.hubble_otlp_metrics):
            return
        static = parse_static(settings.hubble_metrics.split())
        self.metrics.counted = tuple(Counted(metric.make()) for metric in static)
        if (path := settings.hubble_dynamic_metrics_config_path) is not None:
            self._keep(_follow_metrics(MetricsFile(path, self.metrics)))
        if settings.hubble_otlp_metrics:
            pushed = pushing_metrics(
                settings,
                service="hubble-flows",
                node=settings.node_name,
                registry=FlowRegistry(self.metrics, [LOST]),
            )
            self._keep(pushed)
        if settings.hubble_metrics_server:
            await self._serve_metrics()

    async def _serve_metrics(self) -> None:
        settings, tls = self._settings, None
        certificate = settings.hubble_metrics_server_tls_cert_file
        key = settings.hubble_metrics_server_tls_key_file
        if settings.hubble_metrics_server_enable_tls and certificate and key:
            cas = settings.hubble_metrics_server_tls_client_ca_files
            tls = server_context(certificate, key, cas, protocols=("http/1.1",))
        endpoint = MetricsEndpoint(
            self.metrics, [LOST], open_metrics=settings.enable_hubble_open_metrics
        )
        self.metrics_port = await endpoint.http.listen_tcp(settings.hubble_metrics_server, tls)
        self._stack.push_async_callback(endpoint.http.stop)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task until the server ends."""
        task = asyncio.ensure_future(work)

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)


async def _follow_metrics(file: MetricsFile) -> None:
    while True:
        try:
            if file.look():
                _log.info("metrics of flows follow their file")
        except MetricsConfigError as error:
            _log.error("metrics stay as they are", reason=str(error))
        await asyncio.sleep(_METRICS_INTERVAL_S)


def _port(address: str) -> int | None:
    return split_address(address)[1] if address else None


def _give_to_group(path: Path) -> None:
    """Let members of the group cilium use the socket, where there is such a group."""
    if os.geteuid() != 0:
        return
    with suppress(KeyError):
        os.chown(path, 0, grp.getgrnam(_SOCKET_GROUP).gr_gid)
