"""Hubble's own client and ours, put to the same servers: what they print must be the same.

Servers are a node and a relay over two nodes, each plainly and with certificates on both sides.
What changes from one call to the next, clocks and counts, is taken out before comparing.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from hubble_relay.app import Relay
from hubble_relay.peers import Peer
from hubble_relay.settings import RelaySettings

from tests.certificates import Authority
from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import event, names, strange, strange_records, traffic

OURS = Path(sys.executable).with_name("hubble")
NODE_NAME = "node1.default.hubble-grpc.cilium.io"
RELAY_NAME = "relay.default.hubble-relay.cilium.io"

_LIMIT_S = 60.0
_CHANGING = (
    (re.compile(r"(\bUPTIME: |Uptime: |Flows/s: |FLOWS PER SECOND: ).*"), r"\1"),
    (re.compile(r'"(uptime_ns|flows_rate)": ?"?[-+.e\d]+"?'), r'"\1"'),
    (re.compile(r"\b(\d+h)?(\d+m)?\d+(\.\d+)?m?s\b( +\d+\.\d\d\b)?"), "a while"),
    (re.compile(r'(\{"node_status":.*"time":)"[^"]*"'), r"\1"),
    (re.compile(r"^(time=\S+ |\w{3} \d+ [\d:.]+(?= \[))", re.MULTILINE), ""),
    (re.compile(r"on 2 nodes: node\d, node\d"), "on 2 nodes"),
    (re.compile(r"\xa0"), " "),
    (re.compile(r',?"chunk_type":"\w+"'), ""),
)
"""What tells the time of the call or is of a later version, and what stands in its place."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server with what a client must say to reach it."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Running servers."""

    places: Sequence[Place]
    nodes: Sequence[Server]


@dataclass(frozen=True, slots=True)
class Said:
    """What one program printed, and how it ended."""

    code: int
    output: str
    errors: str

    def plain(self) -> Said:
        """The same without what changes."""
        return Said(self.code, _without_changes(self.output), _without_changes(self.errors))


def _without_changes(text: str) -> str:
    for pattern, instead in _CHANGING:
        text = pattern.sub(instead, text)
    if "a while" in text:  # columns are as wide as what stands in them
        text = re.sub(r"  +", "  ", text)
    return text


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Scene]:
    """Two nodes with flows of every kind, and a relay over them; on addresses of this machine."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    authority = Authority(folder)
    server = authority.issue("server", NODE_NAME, RELAY_NAME)
    own = authority.issue("client")
    tls: dict[str, Any] = {
        "hubble_listen_address": "127.0.0.1:0",
        "hubble_disable_tls": False,
        "hubble_tls_cert_file": server[0],
        "hubble_tls_key_file": server[1],
        "hubble_tls_client_ca_files": (authority.certificate,),
        "hubble_history_dir": folder / "history",
    }
    common: dict[str, Any] = {
        "peer_service": (f"unix://{folder}/nobody.sock",),
        "health_listen_address": "",
        "tls_hubble_client_cert_file": own[0],
        "tls_hubble_client_key_file": own[1],
        "tls_hubble_server_ca_files": (authority.certificate,),
    }
    plain = RelaySettings(
        listen_address=(f"unix://{folder}/relay.sock",), disable_server_tls=True, **common
    )
    mutual = RelaySettings(
        listen_address=("127.0.0.1:0",),
        tls_relay_server_cert_file=server[0],
        tls_relay_server_key_file=server[1],
        tls_relay_client_ca_files=(authority.certificate,),
        **common,
    )
    shown = ("--tls-client-cert-file", str(own[0]), "--tls-client-key-file", str(own[1]))
    trust = ("--tls-ca-cert-files", str(authority.certificate), *shown)
    async with running(folder / "a", **tls) as first, running(folder / "b") as second:
        for seed, node in enumerate((first, second)):
            await _fill(node, seed)
        here = f"127.0.0.1:{first.app.tcp_port}"
        peers = (
            Peer("node1", here, NODE_NAME),
            Peer("node2", f"unix://{folder}/b/hubble.sock", None),
        )
        async with _relay(plain, peers), _relay(mutual, peers) as relay:
            there = f"tls://127.0.0.1:{relay.ports[0]}"
            places = (
                Place("node", ("--server", f"unix://{folder}/a/hubble.sock")),
                Place("relay", ("--server", f"unix://{folder}/relay.sock")),
                Place(
                    "node with certificates",
                    ("--server", f"tls://{here}", "--tls-server-name", NODE_NAME, *trust),
                ),
                Place(
                    "relay with certificates",
                    ("--server", there, "--tls-server-name", RELAY_NAME, *trust),
                ),
            )
            yield Scene(places, (first, second))


@asynccontextmanager
async def _relay(settings: RelaySettings, peers: Sequence[Peer]) -> AsyncIterator[Relay]:
    relay = Relay(settings)
    await relay.start()
    try:
        for peer in peers:
            relay.directory.upsert("known", peer)
        async with asyncio.timeout(_LIMIT_S):
            while sum(one.available for one in relay.pool.connections) < len(peers):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield relay
    finally:
        await relay.stop()


async def _fill(node: Server, seed: int) -> None:
    for update in names(4):
        node.app.update(update)
    await node.feed_flows(strange(400, seed))
    await node.feed_flows(traffic(600, pods=4, seed=seed))
    wanted = node.app.store.head + 61
    for update in strange_records(60, seed):
        node.app.update(update)
    created = flow_pb2.AgentEvent(type=flow_pb2.ENDPOINT_CREATED)
    node.app.update(metadata_pb2.Update(agent_event=metadata_pb2.AgentEvent(event=created)))
    await node.until(lambda: node.app.store.head >= wanted)
    node.feed.put(event(type=2, subtype=13, endpoint=3, src_identity=5), lost={1: 12})
    await node.until(lambda: node.app.store.head >= wanted + 2)


async def run(program: Path, words: Sequence[str], limit_s: float = _LIMIT_S) -> Said:
    """Run a client to its end. Raises TimeoutError."""
    process = await _start(program, words)
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return Said(process.returncode or 0, output.decode(), errors.decode())


async def follow(
    program: Path, words: Sequence[str], lines: int, ended: asyncio.Event, ready: asyncio.Event
) -> Said:
    """Run a client that follows until it has printed so many lines, then interrupt it.

    `ready` is set once it prints what was there, `ended` once it needs no more. How it
    takes an interrupt does not count.
    """
    process = await _start(program, words)
    assert process.stdout is not None
    assert process.stderr is not None
    found: list[str] = []
    try:
        async with asyncio.timeout(_LIMIT_S):
            while len(found) < lines:
                line = await process.stdout.readline()
                if not line:
                    break
                found.append(line.decode())
                ready.set()
            ready.set()
            ended.set()
            if len(found) == lines:
                process.send_signal(signal.SIGINT)
            rest = await process.stderr.read()
            code = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return Said(0 if len(found) == lines else code, "".join(found), rest.decode())


async def _start(program: Path, words: Sequence[str]) -> asyncio.subprocess.Process:
    kept = {"PATH": os.environ.get("PATH", "")}
    return await asyncio.create_subprocess_exec(
        str(program),
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**kept, "HOME": "/nonexistent", "XDG_CONFIG_HOME": ""},
        limit=1 << 24,
    )


# ---- what is asked ----

_WHOLE = "--use-default-field-masks=false"
"""By default ours asks for fields that their output shows too, and shows them."""

_FILTERS = """
-A|--cel-expression '_flow.verdict == Verdict.DROPPED'|--cluster default
--drop-reason-desc POLICY_DENIED|--encrypted|--unencrypted --first 5|--fqdn '*.example.com'
--from-fqdn 'alias*'|--to-fqdn '*'|--from-all-namespaces|--to-all-namespaces
--from-cluster default|--to-cluster x|--from-identity 1000|--to-identity host|--identity world
--from-ip 10.244.0.0/30|--to-ip fd00:244::1|--ip 192.0.2.7|--from-label app=app1|--to-label '!app'
-l 'app in (app0)'|--from-namespace ns0|--to-namespace ns1|-n ns1|--from-pod ns0/pod-0
--to-pod ns1/pod|--pod ns0/|--from-port 40000|--to-port 443|--port 53|--from-service ns0/x
--to-service y|--service ns0/z|--from-workload app1|--to-workload app2|--workload Deployment/app0
--http-header a:b|--http-method get|--http-path '^/a'|--http-status 4+|--http-url web
--interface lxc1|--ip-trace-id 5|--ip-version v6|-4|-6|--node-label os=linux|--node-name 'node*'
--node-name other|--protocol tcp|--protocol dns|--snat-ip 10.0.0.0/8|--tcp-flags syn,ack
--trace-id abc|--traffic-direction ingress|-t trace|-t drop|-t policy-verdict|-t l7
-t trace:to-endpoint|-t trace-sock|-t capture|-t agent|-t debug|--uuid x|--verdict DROPPED
--verdict TRACED --verdict AUDIT|--not --port 53|--not --from-pod ns0/pod-0 --to-port 443
--allowlist '{"source_pod":["ns0/"]}' --denylist '{"verdict":["DROPPED"]}'|--pod nothing
--identity 1001 -6 -t trace
"""
_SELECTIONS = """
--all|--first 7|--last 3|--last 400|--first 400 --since 1h|--since 1h --until 0s|--until 1h
--since 0s|--last 5 --since 1h
"""
_OUTPUTS = """
-o compact|-o dict|-o tab|-o table|-o json|-o jsonpb|-o compact --color=always
-o dict --color always|-o compact --numeric|-o dict --ip-translation=false
-o table --print-node-name --print-policy-names|-o compact --print-node-name
-o dict --print-policy-names|-o compact --time-format RFC3339Nano
-o table --time-format StampMilli|-o json --field-mask source.pod_name,verdict,l4
-o json --field-mask nothing|-o dict|-o compact -s|-o nonsense
"""
_QUESTIONS = """
status|status -o json|status -o compact|status -o dict|status -o table|list nodes
list nodes -o json|list nodes -o wide|list namespaces|list namespaces -o json
list namespaces -o wide|list namespaces -o dict|observe agent-events
observe agent-events -o json --all|observe agent-events -o dict --last 2|observe debug-events
observe debug-events -o json|observe debug-events -o dict
observe agent-events --first 1 --since 1h|observe --first 1 -f|observe flows --first 3 -o json
observe --port 99999|observe --label 'a b'|observe --http-path '('|observe --last 2 --first 2
observe --cel-expression '_flow.x'|observe --ip x|observe --fqdn 'a b'
observe --tls-server-name nobody --first 1 -o json
"""


def _split(text: str) -> list[list[str]]:
    return [shlex.split(each) for line in text.strip().splitlines() for each in line.split("|")]


def questions() -> list[list[str]]:
    """Command lines that end by themselves, without the server's address."""
    asked = [["--last", "60", *flags] for flags in _split(_FILTERS)]
    asked += [["-o", "json", *flags] for flags in _split(_SELECTIONS)]
    asked += [["--last", "300", *flags] for flags in _split(_OUTPUTS)]
    return [["observe", _WHOLE, *flags] for flags in asked] + _split(_QUESTIONS)


async def compare(client: Path, place: Place, words: Sequence[str]) -> str:
    """Put a question with both clients; returns the first difference, or nothing."""
    arguments = [*words, *place.arguments]
    theirs, ours = await asyncio.gather(run(client, arguments), run(OURS, arguments))
    return difference(theirs, ours)


def difference(theirs: Said, ours: Said) -> str:
    """The first line that differs, with what both have there; empty when there is none."""
    theirs, ours = theirs.plain(), ours.plain()
    if theirs.code != ours.code:
        return f"ends with {ours.code} and not {theirs.code}: {ours.errors or theirs.errors}"
    for name in ("output", "errors"):
        expected, found = (getattr(one, name).split("\n") for one in (theirs, ours))
        if expected != found:
            for number in range(max(len(expected), len(found))):
                lines = [one[number] if number < len(one) else None for one in (expected, found)]
                if lines[0] != lines[1]:
                    return f"{name} line {number}\n  theirs {lines[0]!r}\n  ours   {lines[1]!r}"
    return ""


async def compare_followed(
    client: Path, place: Place, scene: Scene, lines: int, words: Sequence[str]
) -> str:
    """Follow with both clients while flows come, up to so many lines.

    Returns the first difference, or nothing.
    """
    arguments = [*words, *place.arguments]
    readies = [asyncio.Event(), asyncio.Event()]
    done = [asyncio.Event(), asyncio.Event()]
    tasks = [
        asyncio.create_task(follow(program, arguments, lines, ended, ready))
        for program, ended, ready in zip((client, OURS), done, readies, strict=True)
    ]
    for ready in readies:
        await asyncio.wait_for(ready.wait(), _LIMIT_S)
    for seed in range(200):
        if all(one.is_set() for one in done):
            break
        await scene.nodes[0].feed_flows(traffic(4, pods=4, seed=seed))
        await asyncio.sleep(0.05)
    theirs, ours = await asyncio.gather(*tasks)
    return difference(theirs, ours)
