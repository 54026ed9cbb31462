"""Explanations put to the test: the very packet, run through the loaded programs.

What the rules say about a packet is held against what the programs do with it under the maps as
they are. A node can ask its own programs only; an end that lives elsewhere is verified there.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2
from cilium_core import drops
from cilium_core.identities import ReservedIdentity, is_world
from cilium_core.policy.explaining import Reason
from cilium_core.policy.rules import Direction

from cilium_agent.datapath import Outcome, Packet
from cilium_agent.errors import EndpointNotFoundError
from cilium_agent.servicers.messages import origins

if TYPE_CHECKING:
    from cilium_core.policy import CookieTable
    from cilium_core.policy.explaining import DirectionExplanation

    from cilium_agent.datapath import Datapath, Trial
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.servicers.explaining import End, Question


class Verifier:
    """Runs questions through the programs of a node. Its calls block."""

    def __init__(self, datapath: Datapath, table: EndpointTable, cookies: CookieTable) -> None:
        self._datapath = datapath
        self._table = table
        self._cookies = cookies

    def verify(self, question: Question, answer: agent_pb2.ExplainPolicyResponse) -> None:
        """Write into an answer what the programs say, or why they cannot be asked."""
        packet = _packet(question)
        if packet is None:
            answer.unverified.append(
                "both ends need an address of one family; name pods that run, or addresses"
            )
            return
        source, destination = self._local(question.source), self._local(question.destination)
        if source is None and destination is None:
            answer.unverified.append("neither end is a pod of this node; ask the node of one")
            return
        trial = self._try(packet, source, destination, question.source)
        if source is not None:
            self._note(answer.egress, question.answer.egress, trial)
        if destination is None:
            answer.unverified.append(f"{answer.destination.name} is not a pod of this node")
        elif trial.egress.outcome is Outcome.DENIED:
            answer.unverified.append(f"the packet never reaches {answer.destination.name}")
        elif trial.egress.outcome is Outcome.REDIRECTED:
            answer.unverified.append(
                f"a proxy answers {answer.source.name}, and what it sends on itself reaches "
                f"{answer.destination.name}"
            )
        else:
            self._note(answer.ingress, question.answer.ingress, trial)
        if source is None:
            answer.unverified.append(f"{answer.source.name} is not a pod of this node")

    def _try(
        self, packet: Packet, source: Endpoint | None, destination: Endpoint | None, end: End
    ) -> Trial:
        """Send the packet the way it would come; at least one end is a pod of this node."""
        trials = self._datapath.trials
        if source is not None and source.link is not None:
            link = source.link
            return trials.from_pod(packet, link.ifindex, link.mac, link.node_mac)
        if (
            destination is not None
            and destination.link is not None
            and end.party.identity == ReservedIdentity.HOST
        ):
            return trials.from_host(packet, destination.link.ifindex)
        if is_world(end.party.labels):
            return trials.from_network(packet)
        return trials.from_node(packet, end.party.identity)

    def _local(self, end: End) -> Endpoint | None:
        """The pod of this node that an end is."""
        for address in end.addresses:
            with suppress(EndpointNotFoundError):
                endpoint = self._table.by_ip(address)
                if endpoint.alive and endpoint.link is not None:
                    return endpoint
        return None

    def _note(
        self,
        message: agent_pb2.ExplainedDirection,
        found: DirectionExplanation,
        trial: Trial,
    ) -> None:
        egress = found.direction is Direction.EGRESS
        outcome, cookie = trial.egress if egress else trial.ingress
        denied = outcome is Outcome.DENIED
        message.kernel.CopyFrom(
            agent_pb2.KernelVerdict(
                outcome=outcome.name.lower().replace("_", "-"),
                drop_reason=drops.text(trial.reason) if denied else "",
                proxy_port=trial.proxy_port if outcome is Outcome.REDIRECTED else 0,
                derived_from=origins(cookie, self._cookies) if cookie else [],
                agrees=outcome in _expected(found),
            )
        )


def _packet(question: Question) -> Packet | None:
    """The packet in question, in the first family that both ends have."""
    traffic = question.answer.traffic
    for source in map(ipaddress.ip_address, question.source.addresses):
        for destination in map(ipaddress.ip_address, question.destination.addresses):
            if source.version == destination.version:
                return Packet(source, destination, traffic.protocol, traffic.port)
    return None


def _expected(found: DirectionExplanation) -> tuple[Outcome, ...]:
    """What the programs should do. A node or an endpoint in audit mode denies nothing."""
    if not found.enforced:
        return (Outcome.NOT_ASKED,)
    if found.redirect is not None or found.reason is Reason.REQUEST_REFUSED:
        return (Outcome.REDIRECTED,)
    if found.entry is not None and found.entry[1].audit:
        return (Outcome.AUDITED,)
    if found.allowed:
        return (Outcome.ALLOWED,)
    return (Outcome.DENIED, Outcome.AUDITED)
