"""What the kernel knows of a client of a service, and what it does with a packet of its.

The choice is told from what the agent knows (`cilium_core.services.explaining`), with what only the
kernel remembers; then it is held against the loaded programs, or against their maps where programs
cannot be run without a socket. Calls block.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, NamedTuple

from cilium.agent.v1 import agent_pb2
from cilium_core import abi, drops
from cilium_core.policy.ports import Protocol
from cilium_core.services.explaining import Choice, Client, Explanation, Facts, Fate, Place, explain
from cilium_core.services.models import Algorithm, L4Address, Scope

from cilium_agent.datapath import DatapathError, Packet
from cilium_agent.datapath.servicedumps import ServiceAddress
from cilium_agent.datapath.sockets import own_cookie
from cilium_agent.servicers import service_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.services.models import Frontend
    from cilium_core.services.objects import NodeFacts

    from cilium_agent.datapath import Datapath, Trial
    from cilium_agent.datapath.models import Address
    from cilium_agent.datapath.servicedumps import AffinityRow, FrontendRow, ServiceDumps
    from cilium_agent.servicers.service_clients import Asker

_SCOPES = {Scope.EXTERNAL: int(abi.LB_EXTERNAL), Scope.INTERNAL: int(abi.LB_INTERNAL)}
_FAMILIES = {4: int(abi.FAMILY_IPV4), 6: int(abi.FAMILY_IPV6)}
_SOME_PORT = 61234


class Question(NamedTuple):
    """A client that asks at an address, and the frontend that it finds there."""

    asker: Asker
    port: int
    """The client's, 0 when it is not known."""
    at: L4Address
    frontend: Frontend
    node: NodeFacts


class ChoiceTeller:
    """Tells choices with what the kernel of this node remembers."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._dumps: ServiceDumps = datapath.service_dumps

    def explain(self, question: Question) -> Explanation:
        """Follow the choice."""
        asker, frontend = question.asker, question.frontend
        if asker.unserved:
            fates = tuple(Fate(one, 0.0, "is not asked") for one in frontend.backends)
            return Explanation(frontend, Choice.NOT_TRANSLATED, (asker.unserved,), None, fates)
        own = {one.at.address for one in frontend.backends}
        client = Client(asker.place, asker.address, question.port, exempt=asker.address in own)
        return explain(frontend, client, self._facts(question), node=question.node)

    def verify(
        self, question: Question, found: Explanation, answer: agent_pb2.ExplainServiceResponse
    ) -> None:
        """Write into an answer what the kernel says, or why it cannot be asked."""
        asker = question.asker
        if asker.node:
            answer.unverified = f"{asker.name} is on node {asker.node}; ask there"
        elif asker.unserved:
            answer.unverified = "there is no program to ask"
        elif asker.place is Place.SOCKET:
            self._compare(question, found, answer)
        elif asker.address is None:
            answer.unverified = f"{asker.name} has no address of this family"
        else:
            try:
                self._try(question, found, answer)
            except DatapathError as error:
                answer.unverified = f"the programs cannot be run: {error}"

    # ---- what the kernel remembers ----

    def _facts(self, question: Question) -> Facts:
        asker, frontend = question.asker, question.frontend
        row = self._row(frontend)
        if row is None or asker.node:
            return Facts()
        table = None
        if frontend.algorithm is Algorithm.MAGLEV and asker.place is Place.DEVICE:
            table = self._table(row.rev_nat)
        return Facts(
            affinity=self._affinity(question, row) if frontend.affinity_timeout else None,
            connection=self._connection(question),
            table=table,
            seed=self._datapath.live_config()["lb_hash_seed"],
        )

    def _row(self, frontend: Frontend) -> FrontendRow | None:
        at = ServiceAddress(*service_messages.place(frontend.at))
        return self._dumps.frontend(at, _SCOPES[frontend.scope])

    def _affinity(self, question: Question, row: FrontendRow) -> L4Address | None:
        family = _FAMILIES[question.at.address.version]
        found: AffinityRow | None = None
        if question.asker.place is Place.SOCKET:
            cookie = self._cookie(question.asker)
            if cookie is not None:
                found = self._dumps.affine(cookie, row.rev_nat, family)
        elif question.asker.address is not None:
            found = self._dumps.affine(question.asker.address, row.rev_nat, family)
        if found is None or not self._dumps.serves(found.backend, row.rev_nat):
            return None
        age_s = int(time.clock_gettime(time.CLOCK_MONOTONIC)) - found.last_used_s
        return self._at(found.backend) if age_s <= question.frontend.affinity_timeout else None

    def _cookie(self, asker: Asker) -> int | None:
        if asker.endpoint is None:
            return own_cookie()
        known = self._datapath.namespaces.dump()
        return next((key for key, pod in known.items() if pod.endpoint == asker.endpoint.id), None)

    def _connection(self, question: Question) -> L4Address | None:
        asker = question.asker
        if asker.address is None or not question.port or asker.place is Place.SOCKET:
            return None
        at = ServiceAddress(*service_messages.place(question.at))
        found = self._dumps.connection(asker.address, question.port, at)
        if found is None or found.expires_s < time.clock_gettime(time.CLOCK_MONOTONIC):
            return None
        return self._at(found.backend)

    def _table(self, rev_nat: int) -> Sequence[L4Address | None] | None:
        ids = self._dumps.maglev(rev_nat)
        if ids is None:
            return None
        known = {number: self._at(number) for number in set(ids.tolist())}
        return [known[number] for number in ids.tolist()]

    def _at(self, backend: int) -> L4Address | None:
        row = self._dumps.backend(backend)
        if row is None:
            return None
        return L4Address(row.at.address, row.at.port, Protocol(row.at.protocol))

    # ---- what the programs do ----

    def _try(
        self, question: Question, found: Explanation, answer: agent_pb2.ExplainServiceResponse
    ) -> None:
        """Run the packet through the program that would see it first."""
        asker = question.asker
        assert asker.address is not None  # noqa: S101 - the caller has looked
        packet = self._packet(question, asker.address)
        config = self._datapath.config.services
        if asker.endpoint is not None and asker.endpoint.link is not None:
            if not config.pods:
                answer.unverified = "packets of pods are not translated on this node"
                return
            link = asker.endpoint.link
            trial = self._datapath.trials.from_pod(packet, link.ifindex, link.mac, link.node_mac)
            program = "from-container"
        elif asker.place is Place.DEVICE:
            if not config.nodes:
                answer.unverified = "kube-proxy-replacement is off: nothing is served from outside"
                return
            trial = self._datapath.trials.from_network(packet)
            program = "from-netdev"
        else:
            answer.unverified = f"{asker.name} has no device here"
            return
        answer.kernel.CopyFrom(self._told(program, found, trial))

    def _told(self, program: str, found: Explanation, trial: Trial) -> agent_pb2.ServiceVerdict:
        at = self._at(trial.backend) if trial.backend else None
        chosen = next((one for one in found.frontend.backends if one.at == at), None)
        refused = trial.reason if not trial.backend and trial.reason else 0
        verdict = agent_pb2.ServiceVerdict(
            program=program,
            drop_reason=drops.text(refused) if refused else "",
            agrees=_agrees(found, at, trial),
        )
        if at is not None:
            verdict.backend.address.CopyFrom(service_messages.address(at))
            verdict.backend.id = trial.backend
            if chosen is not None:
                verdict.backend.state, verdict.backend.node = chosen.state.value, chosen.node
        return verdict

    def _compare(
        self, question: Question, found: Explanation, answer: agent_pb2.ExplainServiceResponse
    ) -> None:
        """Hold the candidates in the map against the expected ones."""
        if found.choice is Choice.NOT_TRANSLATED:
            answer.unverified = "programs at sockets cannot be run without a socket"
            return
        row = self._row(question.frontend)
        wanted = {one.at for one in question.frontend.eligible}
        held = {self._at(number) for number in row.slots} if row is not None else set()
        missing = sorted(str(at) for at in wanted - held)
        surplus = sorted(str(at) for at in held - wanted)
        parts = []
        if row is None:
            parts.append("the map does not have the frontend")
        if missing:
            parts.append(f"the map lacks {', '.join(missing)}")
        if surplus:
            parts.append(f"the map has {', '.join(surplus)} too")
        answer.kernel.CopyFrom(self._packet_of_pod(question, found))
        answer.kernel.agrees &= not parts
        answer.kernel.difference = "; ".join(parts)

    def _packet_of_pod(self, question: Question, found: Explanation) -> agent_pb2.ServiceVerdict:
        """What would become of a packet that a pod sends past its socket's program."""
        asker = question.asker
        link = None if asker.endpoint is None else asker.endpoint.link
        if link is None or asker.address is None or not self._datapath.config.services.pods:
            return agent_pb2.ServiceVerdict(program="map", agrees=True)
        trial = self._datapath.trials.from_pod(
            self._packet(question, asker.address), link.ifindex, link.mac, link.node_mac
        )
        # sockets remember their clients by namespaces, packets theirs by addresses
        anybody = found if found.choice is Choice.REFUSED else _of_anybody(found)
        return self._told("from-container", anybody, trial)

    @staticmethod
    def _packet(question: Question, source: Address) -> Packet:
        at, port = question.at, question.port or _SOME_PORT
        return Packet(source, at.address, int(at.protocol), at.port, port)


def _of_anybody(found: Explanation) -> Explanation:
    """The choice as it would be for a client that nothing is remembered of."""
    return dataclasses.replace(found, choice=Choice.CONNECTION)


def _agrees(found: Explanation, at: L4Address | None, trial: Trial) -> bool:
    """Whether a trial came out as told. It judges a new connection, whatever ones there are."""
    match found.choice:
        case Choice.REFUSED:
            return at is None and trial.reason == found.reason
        case Choice.NOT_TRANSLATED:
            return at is None
        case Choice.CONNECTION:
            return at in {one.at for one in found.frontend.eligible}
        case _ if found.backend is not None:
            return at == found.backend.at
        case _:
            return at in {one.backend.at for one in found.fates if one.chance}
