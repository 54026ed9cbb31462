"""Hubble's own client and ours, put to the same servers: what they print must be the same.

Servers are a node and a relay over two nodes, each plainly and with certificates on both sides.
With another maker's relay beside each of ours, what a client prints of both must be the same, too.
What changes from one call to the next, clocks and counts, is taken out before comparing.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from peer import peer_pb2
from relay import relay_pb2

from tests.certificates import Authority
from tests.compat import relays
from tests.compat.relays import Certificates, free_port
from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import event, names, strange, strange_records, traffic
from tests.unit.relay.fakes import FakeNode

OURS = Path(sys.executable).with_name("hubble")
NODE_NAME = "node1.default.hubble-grpc.cilium.io"

_ADDED = peer_pb2.PEER_ADDED
_LIMIT_S = 60.0
_CHANGING: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(\bUPTIME: |Uptime: |Flows/s: |FLOWS PER SECOND: ).*"), r"\1"),
    (re.compile(r'"(uptime_ns|flows_rate)": ?"?[-+.e\d]+"?'), r'"\1"'),
    (re.compile(r"\b(\d+h)?(\d+m)?\d+(\.\d+)?m?s\b( +\d+\.\d\d\b)?"), "a while"),
    (re.compile(r'(\{"node_status":.*"time":)"[^"]*"'), r"\1"),
    (re.compile(r"^(time=\S+ |\w{3} \d+ [\d:.]+(?= \[))", re.MULTILINE), ""),
    (re.compile(r"on (\d) nodes: node\d(, node\d)+"), r"on \1 nodes"),
    (re.compile(r'"node\d"(,"node\d")+'), lambda found: ",".join(sorted(found[0].split(",")))),
    (re.compile(r"hubble-relay v[-+.\w]+"), "hubble-relay"),
    (re.compile(r"\d+\.\d\d( +a while)"), r"a rate\1"),
    (re.compile(r"(\(via 127\.0\.0\.1):\d+"), r"\1"),
    (re.compile(r"\xa0"), " "),
    (re.compile(r',?"chunk_type":"\w+"'), ""),
)
"""What tells the time of the call, has no order or is of a later version, and what it becomes."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server with what a client must say to reach it."""

    name: str
    arguments: tuple[str, ...]
    sorts_few: bool = False
    """Whether it may give more flows than its buffer holds in another order each time."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Running servers."""

    places: Sequence[Place]
    nodes: Sequence[Server]
    peers: FakeNode
    """Tells the first of our relays, and the one beside it, of their nodes."""
    beside: Sequence[tuple[Place, Place]] = ()
    """Relays of ours, each with another maker's over the same nodes."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one program printed, and how it ended."""

    code: int
    output: str
    errors: str

    def plain(self) -> Said:
        """The same without what changes."""
        return Said(self.code, _without_changes(self.output), _without_changes(self.errors))

    def in_any_order(self) -> Said:
        """The same with its lines sorted."""
        return replace(self, output="\n".join(sorted(self.output.split("\n"))))


def _without_changes(text: str) -> str:
    for pattern, instead in _CHANGING:
        text = pattern.sub(instead, text)
    if "a while" in text:  # columns are as wide as what stands in them
        text = re.sub(r"  +", "  ", text)
    return text


@asynccontextmanager
async def serving(folder: Path, theirs: Path | None = None) -> AsyncIterator[Scene]:
    """Two nodes with flows of every kind, and relays over them; on addresses of this machine.

    A plain relay reaches the nodes at their sockets, one with certificates learns from the first
    node where they are. With the program of another maker's relay one of those stands beside each.
    """
    for name in ("a", "b"):
        (folder / name).mkdir()
    authority = Authority(folder)
    names = (NODE_NAME, "node2.default.hubble-grpc.cilium.io", relays.NAME)
    server = authority.issue("server", *names)
    certificates = Certificates(authority.certificate, server, authority.issue("client"))
    port = free_port()
    tls: dict[str, Any] = {
        "hubble_disable_tls": False,
        "hubble_tls_cert_file": server[0],
        "hubble_tls_key_file": server[1],
        "hubble_tls_client_ca_files": (authority.certificate,),
    }
    sockets = [f"unix://{folder}/{name}/hubble.sock" for name in ("a", "b")]
    peers = FakeNode("peers", f"{folder}/peers.sock")
    peers.tell(
        *(
            peer_pb2.ChangeNotification(name=f"node{number}", address=address, type=_ADDED)
            for number, address in enumerate(sockets, 1)
        )
    )
    async with (
        running(
            folder / "a",
            hubble_listen_address=f"127.0.0.1:{port}",
            hubble_history_dir=folder / "history",
            **tls,
        ) as first,
        running(folder / "b", hubble_listen_address=f"127.0.0.2:{port}", **tls) as second,
        AsyncExitStack() as stack,
    ):
        for number, node in enumerate((first, second)):
            await _fill(node, number)
            first.app.update(_known(number + 1))
        await peers.start()
        stack.push_async_callback(peers.stop)

        async def relay(program: Path, name: str) -> tuple[Place, Place]:
            services = ((peers.address, None, ""), (sockets[0], certificates, " with certificates"))
            reached = [
                await stack.enter_async_context(relays.relaying(program, service, shown, nodes=2))
                for service, shown, _ in services
            ]
            plain, mutual = (
                Place(f"{name}{added}", said, program != relays.OURS)
                for said, (_, _, added) in zip(reached, services, strict=True)
            )
            return plain, mutual

        ours = await relay(relays.OURS, "relay")
        others = () if theirs is None else await relay(theirs, "their relay")
        nodes = (
            Place("node", ("--server", sockets[0])),
            Place("node with certificates", certificates.arguments(f"127.0.0.1:{port}", NODE_NAME)),
        )
        beside = tuple(zip(ours, others, strict=False))
        yield Scene((*nodes, *ours, *others), (first, second), peers, beside)


def _known(number: int) -> metadata_pb2.Update:
    return metadata_pb2.Update(
        node=metadata_pb2.Node(
            name=f"node{number}", cluster="default", addresses=[f"127.0.0.{number}"]
        )
    )


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


@dataclass(frozen=True, slots=True)
class Side:
    """A client put to a server."""

    program: Path
    place: Place

    def words(self, words: Sequence[str]) -> list[str]:
        """The whole command line behind the program."""
        return [*words, *self.place.arguments]


_STATES = (
    ["status", "-o", "json"],
    ["list", "nodes", "-o", "json"],
    ["observe", _WHOLE, "-o", "jsonpb", "--last", "3"],
)
"""What is asked when nodes come and go."""

_SORTED = 100
"""Flows that others' relays put in order, unless told otherwise."""


async def compare(theirs: Side, ours: Side, words: Sequence[str]) -> str:
    """Put a question to both sides; returns the first difference, or nothing."""
    said = await asyncio.gather(*(run(side.program, side.words(words)) for side in (theirs, ours)))
    if theirs.place != ours.place and "code = Unimplemented" in said[0].errors:
        return ""  # others' relays have no events but flows
    if theirs.place.sorts_few and said[0].output.count("\n") > _SORTED:
        return difference(*(one.in_any_order() for one in said))
    return difference(*said)


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
    theirs: Side, ours: Side, scene: Scene, lines: int, words: Sequence[str]
) -> str:
    """Follow with both sides while flows come, up to so many lines.

    Returns the first difference, or nothing.
    """
    readies = [asyncio.Event(), asyncio.Event()]
    done = [asyncio.Event(), asyncio.Event()]
    tasks = [
        asyncio.create_task(follow(side.program, side.words(words), lines, ended, ready))
        for side, ended, ready in zip((theirs, ours), done, readies, strict=True)
    ]
    for ready in readies:
        await asyncio.wait_for(ready.wait(), _LIMIT_S)
    for seed in range(200):
        if all(one.is_set() for one in done):
            break
        await scene.nodes[0].feed_flows(traffic(4, pods=4, seed=seed))
        await asyncio.sleep(0.05)
    return difference(*await asyncio.gather(*tasks))


async def compare_states(client: Path, scene: Scene) -> AsyncIterator[tuple[str, str]]:
    """Let a third node come, fail, go away, come back and leave, as the first relays see it.

    Gives what was done with the question put then, and the first difference or nothing.
    """
    ours, theirs = (Side(client, place) for place in scene.beside[0])
    node = FakeNode("node3", f"{scene.peers.socket}.node3", flows=[10**18])
    steps = (
        ("is told and is away", relay_pb2.NODE_UNAVAILABLE),
        ("is there", relay_pb2.NODE_CONNECTED),
        ("fails", relay_pb2.NODE_ERROR),
        ("went away", relay_pb2.NODE_UNAVAILABLE),
        ("left", None),
    )
    try:
        for step, state in steps:
            match step:
                case "is told and is away":
                    scene.peers.tell(node.added())
                case "is there":
                    await node.start()
                case "fails":
                    node.error = (grpc.StatusCode.INTERNAL, "out of order")
                case "went away":
                    await node.stop()
                case _:
                    scene.peers.tell(node.added(peer_pb2.PEER_DELETED))
            for side in (ours, theirs):
                await relays.until(side.place.arguments[1], node.name, state)
            for words in _STATES:
                yield f"node3 {step}: {shlex.join(words)}", await compare(theirs, ours, words)
    finally:
        await node.stop()
