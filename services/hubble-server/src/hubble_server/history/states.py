"""States: what the agent had told by a moment, out of snapshots and the changes after them.

Beside the flows lie segments, `state-00000001-<first>.log`, numbered in the order they were
written. A segment begins with everything the agent has told and goes on with every change, so each
explains itself. It is a sequence of records: magic, CRC-32 of the rest, length of the body, kind,
time; the body is a zlib-compressed cilium.metadata.v1.WatchResponse. A record without updates says
that nothing has changed until then. What follows the last whole record was being written when the
server ended, and does not count.

Pure but for reading files; `statelog.py` writes them.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cilium.flows.v1 import states_pb2
from cilium.metadata.v1 import metadata_pb2
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_HEAD: Final = struct.Struct("<IIIBq")
"""Magic, CRC-32 of what follows it, length of the body, kind, time in ns since the epoch."""

_MAGIC: Final = 0x31544148
_LARGEST: Final = 1 << 28
_NAME: Final = re.compile(r"state-(\d{8,})-(-?\d+)\.log")

SNAPSHOT: Final = 1
"""A record that replaces all before it."""
CHANGE: Final = 0

NOT_KEPT: Final = "nothing is kept of that moment"

_PIECE: Final = 2000
"""Most objects in one message of an answer."""


def _frontend(frontend: metadata_pb2.Frontend) -> tuple[str, int, int]:
    return frontend.ip, frontend.port, frontend.protocol


_KEYS: Final[dict[str, Callable[[Any], object]]] = {
    "local_node": lambda _: None,
    "node": lambda node: f"{node.cluster}/{node.name}" if node.cluster else node.name,
    "endpoint": lambda endpoint: endpoint.id,
    "identity": lambda identity: identity.id,
    "ip": lambda entry: entry.prefix,
    "rules": lambda rules: rules.cookie,
    "service": lambda service: _frontend(service.frontend),
}
_DELETIONS: Final[dict[str, tuple[str, Callable[[Any], object]]]] = {
    "node_deleted": ("node", str),
    "endpoint_deleted": ("endpoint", int),
    "identity_deleted": ("identity", int),
    "ip_deleted": ("ip", str),
    "rules_deleted": ("rules", int),
    "frontend_deleted": ("service", _frontend),
}
KINDS: Final = frozenset(_KEYS) | frozenset(_DELETIONS)
"""Kinds of updates that a state is made of."""


@dataclass(slots=True)
class State:
    """What is known at one moment."""

    _known: dict[tuple[str, object], metadata_pb2.Update] = field(default_factory=dict)

    def apply(self, update: metadata_pb2.Update) -> None:
        """Take in a change; one of no kind of `KINDS` is none."""
        kind = update.WhichOneof("update") or ""
        if (key := _KEYS.get(kind)) is not None:
            self._known[kind, key(getattr(update, kind))] = update
        elif (gone := _DELETIONS.get(kind)) is not None:
            of, name = gone
            self._known.pop((of, name(getattr(update, kind))), None)

    def replace(self, updates: Iterable[metadata_pb2.Update]) -> None:
        """Take a whole state in place of this one."""
        self._known = {}
        for update in updates:
            self.apply(update)

    def updates(self) -> list[metadata_pb2.Update]:
        """The state as a snapshot."""
        return list(self._known.values())

    def narrowed(self, namespaces: frozenset[str]) -> State:
        """What of it one may know who may see some namespaces only."""
        shown = State()
        identities = {one.identity for one in self.of("endpoint") if one.namespace in namespaces}
        for (kind, key), update in self._known.items():
            one = getattr(update, kind)
            if kind == "rules":
                own = [policy for policy in one.policies if policy.namespace in namespaces]
                rules = metadata_pb2.Rules(cookie=one.cookie, policies=own)
                shown._known[kind, key] = metadata_pb2.Update(rules=rules)
            elif kind in ("local_node", "node"):
                made = type(one)(name=one.name, cluster=one.cluster)
                shown._known[kind, key] = metadata_pb2.Update(**{kind: made})
            elif (kind == "identity" and one.id in identities) or (
                kind in ("endpoint", "ip", "service") and one.namespace in namespaces
            ):
                shown._known[kind, key] = update
        return shown

    def of(self, kind: str) -> list[Any]:
        """All objects of a kind, in the order of their keys."""
        found = [
            (key, getattr(update, kind)) for (of, key), update in self._known.items() if of == kind
        ]
        return [one for _, one in sorted(found, key=lambda item: str(item[0]).zfill(20))]


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of records."""

    number: int
    first_ns: int
    path: Path


def segments_of(directory: Path) -> list[Segment]:
    """Segments in order. Raises OSError."""
    found = [
        Segment(int(match[1]), int(match[2]), path)
        for path in directory.iterdir()
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda segment: segment.number)


def segment_path(directory: Path, number: int, first_ns: int) -> Path:
    """Path of a segment."""
    return directory / f"state-{number:08d}-{first_ns}.log"


def encode(kind: int, time_ns: int, updates: Iterable[metadata_pb2.Update]) -> bytes:
    """Encode one record."""
    body = zlib.compress(metadata_pb2.WatchResponse(updates=updates).SerializeToString(), 1)
    rest = _HEAD.pack(_MAGIC, 0, len(body), kind, time_ns)[8:] + body
    return struct.pack("<II", _MAGIC, zlib.crc32(rest)) + rest


def times_of(path: Path) -> list[int]:
    """Times of the records of a segment. Raises OSError."""
    times: list[int] = []
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            magic, _, size, _, time_ns = _HEAD.unpack(head)
            if magic != _MAGIC or size > _LARGEST:
                break
            file.seek(size, os.SEEK_CUR)
            times.append(time_ns)
    return times


def read_records(path: Path) -> Iterator[tuple[int, int, list[metadata_pb2.Update]]]:
    """Kind, time and updates of records, up to the first that is not whole. Raises OSError."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            magic, check, size, kind, time_ns = _HEAD.unpack(head)
            if magic != _MAGIC or size > _LARGEST:
                return
            body = file.read(size)
            if len(body) < size or zlib.crc32(head[8:] + body) != check:
                return
            try:
                response = metadata_pb2.WatchResponse.FromString(zlib.decompress(body))
            except (zlib.error, DecodeError):
                return
            yield kind, time_ns, list(response.updates)


@dataclass(frozen=True, slots=True)
class Moment:
    """A state, and how well it is known."""

    state: State
    told_ns: int
    """When the agent was last heard of; 0 when nothing is kept of the moment."""
    kept_from_ns: int
    """Where what is kept begins; 0 when nothing is."""


def state_at(directory: Path, at_ns: int) -> Moment:
    """What held at a moment: after the last record that is not younger. Raises OSError.

    Where the clock was set back, and the moment came twice, the second time counts.
    """
    segments = segments_of(directory)
    kept_from_ns = min((segment.first_ns for segment in segments), default=0)
    for segment in reversed(segments):
        if segment.first_ns > at_ns:
            continue
        try:
            moment = _within(segment.path, at_ns, kept_from_ns)
        except FileNotFoundError:
            continue  # too old by now
        if moment is not None:
            return moment
    return Moment(State(), 0, kept_from_ns)


def _within(path: Path, at_ns: int, kept_from_ns: int) -> Moment | None:
    times = times_of(path)
    count = max((at + 1 for at, time_ns in enumerate(times) if time_ns <= at_ns), default=0)
    state, told_ns = State(), None
    for kind, time_ns, updates in islice(read_records(path), count):
        if kind == SNAPSHOT:
            state.replace(updates)
        else:
            for update in updates:
                state.apply(update)
        told_ns = time_ns
    return None if told_ns is None else Moment(state, told_ns, kept_from_ns)


def answers(name: str, moment: Moment, note: str = "") -> Iterator[states_pb2.NodeState]:
    """Messages that tell a node's state."""
    state = moment.state
    head = states_pb2.NodeState(
        node_name=name, told_ns=moment.told_ns, kept_from_ns=moment.kept_from_ns, note=note
    )
    for node in state.of("local_node"):
        head.local_node.CopyFrom(node)
    policies = {
        policy.SerializeToString(deterministic=True): policy
        for rules in state.of("rules")
        for policy in rules.policies
    }
    head.policies.extend(
        sorted(policies.values(), key=lambda one: (one.kind, one.namespace, one.name))
    )
    yield head
    kinds = {"peers": "node", "endpoints": "endpoint", "identities": "identity",
             "addresses": "ip", "services": "service"}  # fmt: skip
    for place, kind in kinds.items():
        found = state.of(kind)
        for at in range(0, len(found), _PIECE):
            message = states_pb2.NodeState(node_name=name)
            getattr(message, place).extend(found[at : at + _PIECE])
            yield message
