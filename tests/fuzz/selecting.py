"""Random filters on random flows: what Hubble's own client selects, and what we do.

The client's `observe --input-file` runs the filters that every Hubble server runs, so it can tell
for any flows and filters what must come out. Rounds are of three kinds: flows that are messages, as
`hubble observe --input-file` reads them, flows in a server's ring, and flows in its history. The
path of the client is an argument or `$HUBBLE`; nothing here comes without one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.errors import InvalidError
from cilium_core.flow_filters import compile_filters
from flow import flow_pb2
from google.protobuf import json_format
from hubble_cli.errors import HubbleError
from hubble_cli.replaying import replay
from hubble_server.flows.querying import Query
from hubble_server.history.walking import Asked
from observer import observer_pb2

from tests.fuzz.flows import random_filters, random_flow
from tests.unit.hubble.loads import names, strange, strange_records
from tests.unit.hubble.pipelines import Pipeline
from tests.unit.hubble.test_history import Kept

if TYPE_CHECKING:
    from google.protobuf.message import Message

FLOWS = 50
"""Answers of a round."""

Filters = Sequence[flow_pb2.FlowFilter]
Answers = Sequence[observer_pb2.GetFlowsResponse]

_LIMIT_S = 60
_REDRAWN = 0.9
_NO_FLOWS = 0.04
_ERROR_LENGTH = 24
"""Letters of an error that must be the same; the rest may be worded by another library."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Numbers of the flows that were let through, or why the filters were refused."""

    flows: tuple[int, ...] = ()
    error: str = ""

    def agrees(self, other: Selection) -> bool:
        """Whether both say the same; of errors that is how they begin."""
        shortest = min(len(self.error), len(other.error), _ERROR_LENGTH)
        same = self.error[:shortest] == other.error[:shortest]
        return self.flows == other.flows and bool(self.error) == bool(other.error) and same


@dataclass(frozen=True, slots=True)
class Round:
    """Flows with the lists of filters that one request has."""

    seed: int
    answers: Answers
    allow: Filters
    deny: Filters
    ours: Selection
    kind: str
    """What selected: "messages", "columns" or "history"."""


class Client:
    """Hubble's own command line client. Raises FileNotFoundError when there is none at the path."""

    def __init__(self, path: Path) -> None:
        if not os.access(path, os.X_OK):
            raise FileNotFoundError(f"{path}: no such program; give the path of a hubble client")
        self._path = path
        kept = {"PATH": os.environ.get("PATH", "")}
        self._environment = {**kept, "HOME": "/nonexistent", "XDG_CONFIG_HOME": ""}

    def select(self, one: Round) -> Selection:
        """What the client lets through."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines_of(one.answers))
            file.flush()
            command = [str(self._path), "observe", "--input-file", file.name, "-o", "json"]
            for flag, filters in (("--allowlist", one.allow), ("--denylist", one.deny)):
                if filters:
                    command += [flag, "\n".join(json.dumps(as_json(each)) for each in filters)]
            ended = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                env=self._environment,
                timeout=_LIMIT_S,
            )
        if ended.returncode:
            return Selection(error=ended.stderr.strip())
        told = [json.loads(line)["node_name"] for line in ended.stdout.splitlines()]
        return Selection(tuple(map(int, told)))


def as_json(message: Message) -> dict[str, Any]:
    """A message with the names of its fields as they are in the API."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def lines_of(answers: Answers) -> list[str]:
    """Answers as a file has them. Each has its number for a node, at which no filter looks."""
    return [
        json.dumps({**as_json(answer), "node_name": str(number)}, ensure_ascii=False)
        for number, answer in enumerate(answers)
    ]


def message_round(seed: int) -> Round:
    """Answers out of a file, filtered one by one."""
    chance = Random(seed)
    answers = [_answer(chance) for _ in range(FLOWS)]
    flows = [answer.flow for answer in answers if answer.HasField("flow")]
    allow, deny = _lists(chance, flows)
    ours = replayed(lines_of(answers), allow, deny)
    return Round(seed, answers, allow, deny, ours, "messages")


def replayed(lines: Sequence[str], allow: Filters, deny: Filters) -> Selection:
    """What `hubble observe --input-file` lets through."""
    request = observer_pb2.GetFlowsRequest(whitelist=allow, blacklist=deny)
    try:
        found = list(replay(lines, request, pytest.fail))
    except HubbleError as error:
        return Selection(error=str(error))
    return Selection(tuple(int(answer.node_name) for answer in found))


def _answer(chance: Random) -> observer_pb2.GetFlowsResponse:
    if chance.random() < _NO_FLOWS:
        lost = flow_pb2.LostEvent(source=flow_pb2.HUBBLE_RING_BUFFER, num_events_lost=1)
        return observer_pb2.GetFlowsResponse(lost_events=lost)
    return observer_pb2.GetFlowsResponse(flow=random_flow(chance))


def column_round(seed: int) -> Round:
    """Flows of a server, filtered as columns."""
    chance = Random(seed)
    pipeline = Pipeline()
    answers = _fed(pipeline, seed)
    allow, deny = _lists(chance, [answer.flow for answer in answers])
    try:
        filters = pipeline.filters(allow, deny)
    except InvalidError as error:
        ours = Selection(error=str(error))
    else:
        ours = _selection(answers, pipeline.responses(Query(filters=filters)))
    return Round(seed, answers, allow, deny, ours, "columns")


def history_round(seed: int) -> Round:
    """Flows on a disk, the older part in a complete file and the rest in a journal."""
    chance = Random(seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        kept = Kept(Path(folder))
        try:
            kept.tell(*names(4))
            kept.feed(strange(FLOWS // 2, seed + 1))
            kept.complete()
            answers = _fed(kept, seed, FLOWS // 2)
            kept.history.step()
            allow, deny = _lists(chance, [answer.flow for answer in answers])
            try:
                found = kept.read(Asked(whitelist=tuple(allow), blacklist=tuple(deny)))
            except InvalidError as error:
                ours = Selection(error=str(error))
            else:
                ours = _selection(answers, found)
        finally:
            kept.history.stop()
    return Round(seed, answers, allow, deny, ours, "history")


def _fed(pipeline: Pipeline, seed: int, flows: int = FLOWS) -> Answers:
    """All that a pipeline has after it was fed so many flows more, some of them of proxies."""
    pipeline.tell(*names(4))
    pipeline.feed(strange(flows - flows // 3, seed))
    pipeline.tell(*strange_records(flows // 3, seed))
    return pipeline.responses()


def _selection(answers: Answers, found: Answers) -> Selection:
    numbers = {answer.flow.uuid: number for number, answer in enumerate(answers)}
    return Selection(tuple(numbers[answer.flow.uuid] for answer in found))


def record(client: Client, seed: int, requests: int) -> list[dict[str, Any]]:
    """Answers of a file, and after them requests with what the client selects of them."""
    chance = Random(seed)
    answers = [_answer(chance) for _ in range(FLOWS)]
    flows = [answer.flow for answer in answers if answer.HasField("flow")]
    rows: list[dict[str, Any]] = [{"lines": lines_of(answers)}]
    for _ in range(requests):
        allow, deny = _lists(chance, flows)
        one = Round(seed, answers, allow, deny, Selection(), "messages")
        found = client.select(one)
        row = {"allow": [*map(as_json, allow)], "deny": [*map(as_json, deny)]}
        rows.append({**row, "error": found.error} if found.error else {**row, "flows": found.flows})
    return rows


def rounds(seed: int) -> Iterator[Round]:
    """Rounds without an end, in turns of all kinds; a seed begins with its own round."""
    kinds = (message_round, column_round, history_round)
    while True:
        yield kinds[seed % len(kinds)](seed)
        seed += 1


def _lists(chance: Random, flows: Sequence[flow_pb2.Flow]) -> tuple[Filters, Filters]:
    """Lists of a request. Most that make no sense are drawn again, as they select nothing."""
    while True:
        allow = random_filters(chance, flows) if chance.random() < 0.8 else []
        deny = random_filters(chance, flows) if not allow or chance.random() < 0.25 else []
        try:
            compile_filters(allow, deny)
        except InvalidError:
            if chance.random() < _REDRAWN:
                continue
        return allow, deny
