"""The node itself as an endpoint: what policies with a `nodeSelector` apply to.

It exists where `enable-host-firewall` is on. It has a fixed id, identity 1 and the labels of the
node, and is never on disk but for its options: the node is there whenever an agent is.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from cilium_core.files import write_atomic
from cilium_core.identities import ReservedIdentity
from cilium_core.labels import SOURCE_K8S, Label, LabelSet
from cilium_core.telemetry import get_logger

from cilium_agent.endpoints.records import HOST_ID, Attachment, Endpoint, Link
from cilium_agent.endpoints.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.policies import Policies

log = get_logger()

DEVICE = "cilium_host"


def host_labels(labels: Mapping[str, str]) -> LabelSet:
    """The labels of the host endpoint, by those of the node."""
    node = (Label(SOURCE_K8S, key, value) for key, value in labels.items())
    return LabelSet((*node, ReservedIdentity.HOST.label))


class HostEndpoint:
    """Makes the endpoint and keeps its labels. `endpoint` is None until it is made."""

    def __init__(self, table: EndpointTable, policies: Policies, file: Path) -> None:
        """Take the parts; `file` is where its options are kept."""
        self.endpoint: Endpoint | None = None
        self._table = table
        self._policies = policies
        self._file = file

    def make(self, ifindex: int, mac: str, labels: Mapping[str, str]) -> Endpoint:
        """Add the endpoint behind its device to the table; it gets its policy by a `build`."""
        endpoint = Endpoint(
            id=HOST_ID,
            attachment=Attachment("", "", DEVICE),
            namespace="",
            pod_name="",
            pod_uid="",
            ipv4="",
            ipv6="",
            state=State.RESTORING,
            link=Link(DEVICE, ifindex, mac, mac),
            labels=host_labels(labels),
            identity=int(ReservedIdentity.HOST),
            created=True,
            audit=self._read_audit(),
        )
        endpoint.note("the node itself")
        self._table.add(endpoint)
        self.endpoint = endpoint
        return endpoint

    async def relabel(self, labels: Mapping[str, str]) -> None:
        """Follow the node's labels."""
        endpoint, wanted = self.endpoint, host_labels(labels)
        if endpoint is not None and endpoint.labels != wanted:
            endpoint.labels = wanted
            endpoint.note("the node's labels changed")
            await self._policies.build(endpoint)

    async def save(self) -> None:
        """Keep the options."""
        if self.endpoint is not None:
            content = json.dumps({"audit": self.endpoint.audit}).encode()
            await asyncio.to_thread(write_atomic, self._file, content)

    def _read_audit(self) -> bool:
        try:
            return json.loads(self._file.read_bytes())["audit"] is True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning(
                "options of the host endpoint ignored", file=str(self._file), error=str(error)
            )
            return False
