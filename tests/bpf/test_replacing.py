"""Programs and maps are replaced under traffic, and no packet notices."""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cilium_agent import datapath
from cilium_agent.datapath import loading, pinning
from cilium_core.policy import PolicyEntry, PolicyKey

from tests.bpf.conftest import CACHE, why_not
from tests.bpf.harness import Namespace
from tests.bpf.nodes import Node
from tests.needing import need

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMIT_S = 30.0
_PATIENCE_S = 1.5
"""How long an answer may take on a busy machine before it counts as lost."""


@pytest.fixture
def node() -> Iterator[Node]:
    need(why_not())
    root = Path("/sys/fs/bpf") / f"test-{os.getpid()}-{secrets.token_hex(4)}"
    pinning.ensure_bpffs(root)
    plane = datapath.Datapath(datapath.DatapathPaths(root, CACHE), {"cilium_policy": 64})
    made = Node(Namespace(), plane, root)
    made.add_device()
    yield made
    made.call(made.plane.teardown)
    made.namespace.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def pods(node: Node) -> Iterator[list[Namespace]]:
    """Two pods of the node, 10 and 11, that know each other."""
    node.start()
    made = [Namespace(), Namespace()]
    for number, pod in zip((10, 11), made, strict=True):
        info = node.add_pod(pod, number)
        for address in (info.ipv4, info.ipv6):
            assert address is not None
            node.plane.ipcache.upsert(ipaddress.ip_network(address), info.identity)
    yield made
    for pod in made:
        pod.close()


class Conversation:
    """Two pods that ask and answer over UDP, one datagram at a time, until told to stop."""

    def __init__(self, pods: list[Namespace], family: int, server: str, client: str) -> None:
        self._server = pods[1].call(socket.socket, family, socket.SOCK_DGRAM)
        self._server.bind((server, 7000))
        self._client = pods[0].call(socket.socket, family, socket.SOCK_DGRAM)
        self._client.bind((client, 7001))
        self._client.connect((server, 7000))
        for each in (self._server, self._client):
            each.settimeout(_PATIENCE_S)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._answer, self._ask)]
        self._moved = threading.Condition()
        self.answered = self.lost = 0
        for thread in self._threads:
            thread.start()

    def _answer(self) -> None:
        while not self._stop.is_set():
            try:
                data, peer = self._server.recvfrom(64)
            except TimeoutError:
                continue
            self._server.sendto(data, peer)

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self._client.send(b"question")
                self._client.recv(64)
                answered = True
            except (TimeoutError, ConnectionError):
                answered = False
            with self._moved:
                self.answered += answered
                self.lost += not answered
                self._moved.notify_all()

    def wait_for(self, more: int) -> None:
        """Return once so many more questions have been answered, or some were lost."""
        goal = self.answered + more
        with self._moved:
            self._moved.wait_for(lambda: self.answered >= goal or self.lost > 2, _LIMIT_S)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for each in (self._server, self._client):
            each.close()


@pytest.fixture(params=["IPv4", "IPv6"])
def conversation(request: pytest.FixtureRequest, pods: list[Namespace]) -> Iterator[Conversation]:
    if request.param == "IPv4":
        made = Conversation(pods, socket.AF_INET, "10.244.0.11", "10.244.0.10")
    else:
        made = Conversation(pods, socket.AF_INET6, "fd00:244::11", "fd00:244::10")
    yield made
    made.close()


def test_a_restart_with_the_same_programs_loses_no_packet(
    node: Node, conversation: Conversation
) -> None:
    conversation.wait_for(100)
    for _ in range(3):
        node.start()
        conversation.wait_for(100)

    assert conversation.lost == 0
    assert conversation.answered > 400


def test_an_upgrade_to_other_programs_loses_no_packet(
    node: Node, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading._key
    conversation.wait_for(100)
    for version in range(3):
        monkeypatch.setattr(
            loading, "_key", lambda *given, version=version: f"{version}{real(*given)}"[:16]
        )
        node.start()
        conversation.wait_for(100)

    assert conversation.lost == 0
    assert len(list(node.root.glob("programs_*"))) == 1


def test_maps_of_another_size_lose_no_packet_and_no_connection(
    node: Node, conversation: Conversation
) -> None:
    conversation.wait_for(100)
    before = {(each.source, each.source_port) for each in node.plane.conntrack.dump()}
    paths = datapath.DatapathPaths(node.root, CACHE)
    sizes = {"cilium_policy": 128, "cilium_ct_any4_global": 4096, "cilium_ct_any6_global": 4096}
    node.call(node.plane.stop)
    node.plane = datapath.Datapath(paths, {**sizes, "cilium_lxc": 1000, "cilium_devices": 1000})

    node.start()
    conversation.wait_for(100)

    after = {(each.source, each.source_port) for each in node.plane.conntrack.dump()}
    assert conversation.lost == 0
    assert before <= after


def test_policy_changes_that_keep_a_rule_keep_its_packets(
    node: Node, conversation: Conversation
) -> None:
    endpoint = next(info for info in node.plane.endpoints.dump() if info.id == 11)
    kept = {PolicyKey(1, 1000, 17, 7000, 24): PolicyEntry(1, deny=False)}
    node.plane.policy.replace(11, kept)
    node.plane.endpoints.upsert(replace(endpoint, flags=2))  # enforce ingress
    conversation.wait_for(100)

    for round_ in range(20):
        more = {
            PolicyKey(1, identity, 17, 9000 + round_, 24): PolicyEntry(1, deny=False)
            for identity in (0, 1001, 1002)
        }
        node.plane.policy.replace(11, {**kept, **more})
    conversation.wait_for(100)

    assert conversation.lost == 0


def test_a_revoked_rule_stops_an_established_conversation(
    node: Node, conversation: Conversation
) -> None:
    endpoint = next(info for info in node.plane.endpoints.dump() if info.id == 11)
    rule = {PolicyKey(1, 1000, 17, 7000, 24): PolicyEntry(1, deny=False)}
    node.plane.policy.replace(11, rule)
    node.plane.endpoints.upsert(replace(endpoint, flags=2))
    conversation.wait_for(50)
    answered = conversation.answered

    node.plane.policy.update(11, {}, rule)
    conversation.wait_for(1_000_000)

    assert answered >= 50
    assert conversation.lost > 2
