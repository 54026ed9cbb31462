"""Endpoints on disk: `<state-dir>/state/<endpoint id>/ep_config.json`.

A file is written whole beside its place, synced and renamed over it, so a reader sees the old or
the new one and never half. A file that cannot be read all the same is reported with its name and
what to do, and the endpoint behind it is left closed; it is never guessed at.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cilium_core.files import write_atomic
from cilium_core.labels import LabelError, LabelSet

from cilium_agent.endpoints.records import (
    MAX_ID,
    MIN_ID,
    Attachment,
    Endpoint,
    EndpointID,
    Link,
    NamedPort,
)
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE_NAME = "ep_config.json"
VERSION = 1

Value = TypeVar("Value", str, int, bool, list[object])


@dataclass(frozen=True)
class Restored:
    """What the state directory holds; the creation of the `unfinished` ones was cut short."""

    endpoints: list[Endpoint]
    unfinished: list[Endpoint]
    broken: dict[EndpointID, EndpointFileError]


class EndpointDirectory:
    """The endpoints' files under one directory. Calls block on the disk, briefly."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, endpoint: Endpoint) -> None:
        """Write an endpoint's file."""
        content = json.dumps(endpoint.stored(), indent=1).encode()
        write_atomic(self._path(endpoint.id), content)

    def remove(self, endpoint_id: EndpointID) -> None:
        """Forget an endpoint; an unknown one is fine."""
        shutil.rmtree(self._root / str(endpoint_id), ignore_errors=True)

    def load(self) -> Restored:
        """Read all endpoints."""
        result = Restored(endpoints=[], unfinished=[], broken={})
        if not self._root.is_dir():
            return result
        for directory in sorted(self._root.iterdir()):
            name = directory.name
            if not name.isascii() or not name.isdecimal() or not MIN_ID <= int(name) <= MAX_ID:
                continue
            endpoint_id = EndpointID(int(name))
            try:
                endpoint = _parse(directory / FILE_NAME, endpoint_id)
            except EndpointFileError as error:
                result.broken[endpoint_id] = error
                continue
            (result.endpoints if endpoint.created else result.unfinished).append(endpoint)
        return result

    def _path(self, endpoint_id: EndpointID) -> Path:
        return self._root / str(endpoint_id) / FILE_NAME


def _parse(path: Path, endpoint_id: EndpointID) -> Endpoint:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EndpointFileError(
            f"endpoint {endpoint_id}: {path} cannot be read ({error}); the endpoint stays closed "
            "until its pod is deleted and created again"
        ) from error
    if not isinstance(document, dict):
        raise EndpointFileError(f"endpoint {endpoint_id}: {path} holds no JSON object")
    fields = _Fields(path, endpoint_id, document)
    version = fields.get("version", int)
    if version != VERSION:
        raise fields.error("version", f"is {version}; this agent reads version {VERSION}")
    if fields.get("id", int) != endpoint_id:
        raise fields.error("id", f"is {document['id']}, the directory says {endpoint_id}")
    return Endpoint(
        id=endpoint_id,
        attachment=Attachment(
            container_id=fields.get("containerID", str),
            netns=fields.get("netns", str),
            ifname=fields.get("ifname", str),
        ),
        namespace=fields.get("namespace", str),
        pod_name=fields.get("podName", str),
        pod_uid=fields.get("podUID", str),
        ipv4=fields.get("ipv4", str),
        ipv6=fields.get("ipv6", str),
        state=State.RESTORING,
        link=_link(fields),
        labels=_labels(fields),
        identity=fields.get("identity", int),
        named_ports=tuple(
            NamedPort(
                name=port.get("name", str),
                port=port.get("port", int),
                protocol=port.get("protocol", str),
            )
            for port in fields.objects("namedPorts")
        ),
        workloads=tuple(
            (item.get("kind", str), item.get("name", str)) for item in fields.objects("workloads")
        ),
        created=fields.get("created", bool),
        audit=fields.get("audit", bool, False),
    )


def _labels(fields: _Fields) -> LabelSet:
    texts = fields.get("labels", list)
    try:
        return LabelSet.parse(str(text) for text in texts)
    except LabelError as error:
        raise fields.error("labels", str(error)) from error


def _link(fields: _Fields) -> Link | None:
    ifindex = fields.get("ifindex", int)
    if ifindex == 0:
        return None
    return Link(
        interface=fields.get("interface", str),
        ifindex=ifindex,
        mac=fields.get("mac", str),
        node_mac=fields.get("nodeMac", str),
    )


class _Fields:
    """Typed access to a JSON object that names file and field when it is not as expected."""

    def __init__(self, path: Path, endpoint_id: int, document: Mapping[str, object]) -> None:
        self._path = path
        self._id = endpoint_id
        self._document = document

    def error(self, field: str, problem: str) -> EndpointFileError:
        return EndpointFileError(f"endpoint {self._id}: {self._path}: field {field!r} {problem}")

    def get(self, field: str, kind: type[Value], default: Value | None = None) -> Value:
        value = self._document.get(field, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(field, f"is {value!r} instead of {kind.__name__}")
        return value

    def objects(self, field: str) -> list[_Fields]:
        items = self.get(field, list)
        found = []
        for item in items:
            if not isinstance(item, dict):
                raise self.error(field, f"holds {item!r} instead of an object")
            found.append(_Fields(self._path, self._id, item))
        return found
