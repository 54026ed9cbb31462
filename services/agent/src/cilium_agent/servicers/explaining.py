"""Explanations of verdicts: finds out who the two ends are, and puts the answer into messages.

Ends are judged by their labels under the policies of this node's repository, which every node of a
cluster has alike; so a pod may be asked about wherever it runs, and labels before any pod has them.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, NamedTuple

from cilium.agent.v1 import agent_pb2
from cilium_core.identities import IDENTITY_UNKNOWN, NumericIdentity, ReservedIdentity
from cilium_core.labels import (
    KEY_CLUSTER,
    KEY_NAMESPACE,
    SOURCE_CIDR,
    SOURCE_K8S,
    SOURCE_RESERVED,
    Label,
    LabelError,
    LabelSet,
)
from cilium_core.policy.explaining import (
    Explanation,
    Party,
    PolicyState,
    Traffic,
    explain_direction,
)
from cilium_core.policy.requests import DnsQuestion, HttpRequest
from cilium_core.policy.rules import Direction
from cilium_core.policy.suggesting import suggest

from cilium_agent.errors import PodNotFoundError, RequestError
from cilium_agent.policies import container_ports
from cilium_agent.servicers.messages import policy_entry, redirect

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.policy import ContainerPort, PolicyEngine
    from cilium_core.policy.explaining import DirectionExplanation, RuleTrace
    from cilium_core.policy.requests import SecretValue

    from cilium_agent.ipcaches import Entry, IPCache
    from cilium_agent.pods import PodTable

_PROTOCOL_MAX = 255
_PORT_MAX = 65535


class End(NamedTuple):
    """One end of the traffic: who it is, where that is from, and its addresses if it has any.

    `node` is the address of the node that a pod runs on, or of the node that the end is; empty for
    what is on this node or on none.
    """

    party: Party
    origin: str
    addresses: tuple[str, ...] = ()
    node: str = ""

    def seen_from(self, other: End) -> Party:
        """Who this end is on the node of another one; this node knows its own view."""
        mine = self.party.identity == ReservedIdentity.HOST
        if not other.node or not (mine or ReservedIdentity.REMOTE_NODE.label in self.party.labels):
            return self.party
        if mine:
            node = ReservedIdentity.REMOTE_NODE
        elif self.node == other.node:
            node = ReservedIdentity.HOST
        else:
            return self.party
        return Party(node, node.labels, self.party.address)


class Question(NamedTuple):
    """Who is asked about, and the verdict that the rules give."""

    source: End
    destination: End
    answer: Explanation


class Explainer:
    """Answers requests from what a node knows."""

    def __init__(
        self,
        engine: PolicyEngine,
        ipcache: IPCache,
        pods: PodTable,
        node: str,
        secret: SecretValue | None = None,
        host_labels: Callable[[str], LabelSet | None] = lambda _: None,
    ) -> None:
        """`node` is the name of this node; a pod in its network namespace is the host.

        `secret` tells the values of secrets that headers may have to have; `host_labels` those by
        which policies select the node that has an address, this one for an empty text.
        """
        self._engine = engine
        self._ipcache = ipcache
        self._pods = pods
        self._node = node
        self._secret = secret
        self._host_labels = host_labels

    def ask(self, request: agent_pb2.ExplainPolicyRequest) -> Question:
        """Find the verdict about one packet.

        Raises `RequestError` for what names no end, `PodNotFoundError` for an unknown pod.
        """
        if not 0 < request.protocol <= _PROTOCOL_MAX:
            raise RequestError(f"protocol: {request.protocol} is not a number from 1 to 255")
        if request.port > _PORT_MAX:
            raise RequestError(f"port: {request.port} is not a number from 0 to {_PORT_MAX}")
        source = self._end(request.source, "source")
        destination = self._end(request.destination, "destination")
        engine = self._engine
        state = PolicyState(engine.repository, engine.options, engine.named_ports, self._secret)
        traffic = Traffic(request.protocol, request.port, _request(request))
        answer = Explanation(
            source.party,
            destination.party,
            traffic,
            explain_direction(
                state,
                Direction.EGRESS,
                self._subject(source.party),
                destination.seen_from(source),
                traffic,
            ),
            explain_direction(
                state,
                Direction.INGRESS,
                self._subject(destination.party),
                source.seen_from(destination),
                traffic,
            ),
        )
        return Question(source, destination, answer)

    def tell(
        self, request: agent_pb2.ExplainPolicyRequest, question: Question
    ) -> agent_pb2.ExplainPolicyResponse:
        """Put a verdict into words."""
        found = question.answer
        return agent_pb2.ExplainPolicyResponse(
            allowed=found.allowed,
            source=_party(request.source, question.source),
            destination=_party(request.destination, question.destination),
            egress=self._direction(found, found.egress),
            ingress=self._direction(found, found.ingress),
            revision=self._engine.revision,
        )

    def _subject(self, party: Party) -> Party:
        """A party as the rules about itself see it: a node is the host there, with its labels."""
        here = party.identity == ReservedIdentity.HOST
        if not here and not (party.address and ReservedIdentity.REMOTE_NODE.label in party.labels):
            return party
        labels = self._host_labels(party.address)
        return party if labels is None else Party(ReservedIdentity.HOST, labels, party.address)

    # ---- ends ----

    def _end(self, text: str, field: str) -> End:
        text = text.strip()
        try:
            return self._address(ipaddress.ip_address(text))
        except ValueError:
            pass
        if "=" in text or ":" in text:
            return self._labelled(text, field)
        namespace, slash, name = text.partition("/")
        if not slash:
            namespace, name = "default", namespace
        if not namespace or not name or "/" in name:
            raise RequestError(
                f"{field}: {text[:80]!r} names nothing; write namespace/pod, an address, or labels "
                "such as app=web"
            )
        return self._pod(namespace, name)

    def _pod(self, namespace: str, name: str) -> End:
        pod = self._pods.get(namespace, name)
        if pod is None:
            raise PodNotFoundError(f"there is no pod {namespace}/{name}")
        if pod.host_network:
            local = pod.node == self._node
            node = ReservedIdentity.HOST if local else ReservedIdentity.REMOTE_NODE
            return End(Party(node, node.labels), "pod in the network of its node")
        labels = self._pods.identity_labels(pod)
        ports = frozenset(container_ports(pod.named_ports))
        party = Party(self._number(labels), labels, "", ports)
        addresses, where = self._addresses(namespace, name)
        return End(party, "labels of the pod", addresses, where)

    def _address(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> End:
        best: tuple[int, str, Entry] | None = None
        for text, _, entry in self._ipcache.entries():
            prefix = ipaddress.ip_network(text)
            if address in prefix and (best is None or best[0] < prefix.prefixlen):
                best = prefix.prefixlen, text, entry
        if best is None:
            world = self._engine.options.families.world(address.version)
            party = Party(world, world.labels, str(address))
            return End(party, "no prefix around the address", (str(address),))
        _, text, entry = best
        labels = self._labels(entry.identity)
        ports = frozenset(self._ports(entry.namespace, entry.pod_name))
        origin = f"address table: {text}"
        if entry.pod_name:
            origin += f" is pod {entry.namespace}/{entry.pod_name}"
        party = Party(entry.identity, labels, str(address), ports)
        return End(party, origin, (str(address),), _node_of(entry))

    def _addresses(self, namespace: str, name: str) -> tuple[tuple[str, ...], str]:
        """The addresses of a pod, IPv4 first, and its node (see `End`)."""
        found = {
            text.partition("/")[0]: _node_of(entry)
            for text, _, entry in self._ipcache.entries()
            if (entry.namespace, entry.pod_name) == (namespace, name)
        }
        addresses = tuple(sorted(found, key=lambda text: ":" in text))
        return addresses, next(iter(found.values()), "")

    def _examples(self, identity: int) -> tuple[str, ...]:
        """An address of each family that an identity has, IPv4 first."""
        found: dict[int, str] = {}
        for text, _, entry in self._ipcache.entries():
            if entry.identity == identity:
                prefix = ipaddress.ip_network(text)
                if prefix.num_addresses == 1:
                    found.setdefault(prefix.version, str(prefix.network_address))
        return tuple(found[version] for version in sorted(found))

    def _ports(self, namespace: str, pod_name: str) -> list[ContainerPort]:
        pod = self._pods.get(namespace, pod_name)
        return container_ports(pod.named_ports) if pod is not None else []

    def _labelled(self, text: str, field: str) -> End:
        try:
            labels = LabelSet.parse((part.strip() for part in text.split(",")), SOURCE_K8S)
        except LabelError as error:
            raise RequestError(f"{field}: {error}") from error
        if any(label.source == SOURCE_CIDR for label in labels):
            raise RequestError(f"{field}: {text[:80]!r} is an address prefix; write an address")
        if any(label.source != SOURCE_RESERVED for label in labels):
            defaults = {KEY_NAMESPACE: "default", KEY_CLUSTER: self._engine.options.cluster}
            missing = [key for key in defaults if labels.get(key) is None]
            labels = labels.merge(Label(SOURCE_K8S, key, defaults[key]) for key in missing)
        number = self._number(labels)
        known = number != IDENTITY_UNKNOWN
        origin = "identity with these labels" if known else "no identity has these labels yet"
        return End(Party(number, labels), origin, self._examples(number) if known else ())

    def _number(self, labels: LabelSet) -> int:
        """The identity with exactly these labels, 0 if there is none."""
        known = self._engine.selectors.identities
        return next((number for number, held in known.items() if held == labels), IDENTITY_UNKNOWN)

    def _labels(self, identity: int) -> LabelSet:
        labels = self._engine.selectors.identities.get(NumericIdentity(identity))
        if labels is None:
            raise RequestError(f"identity {identity} is not known to this node yet; ask again")
        return labels

    # ---- messages ----

    def _direction(
        self, whole: Explanation, found: DirectionExplanation
    ) -> agent_pb2.ExplainedDirection:
        suggestion = suggest(whole, found)
        message = agent_pb2.ExplainedDirection(
            direction=found.direction.name.lower(),
            allowed=found.allowed,
            enforced=found.enforced,
            reason=found.reason.name.lower().replace("_", "-"),
            message=found.reason.value,
            rules=[_rule(trace) for trace in found.rules],
            default_deny=found.default_deny,
            suggestion=json.dumps(suggestion) if suggestion else "",
        )
        if found.redirect is not None:
            message.redirect.CopyFrom(redirect(found.redirect))
        if found.entry is not None:
            number = NumericIdentity(found.entry[0].identity)
            labels = self._engine.selectors.identities.get(number)
            redirects = {int(number): one for number, one in self._engine.redirects.items()}
            message.entry.CopyFrom(
                policy_entry(*found.entry, labels, self._engine.cookies, redirects)
            )
            message.entry.ClearField("proxy_port")
        return message


def _request(request: agent_pb2.ExplainPolicyRequest) -> HttpRequest | DnsQuestion | None:
    """What is asked for above the transport layer."""
    match request.WhichOneof("request"):
        case "http":
            asked = request.http
            headers = tuple(sorted(asked.headers.items()))
            return HttpRequest(asked.method or "GET", asked.path or "/", asked.host, headers)
        case "dns_name":
            return DnsQuestion(request.dns_name)
        case _:
            return None


def _party(name: str, end: End) -> agent_pb2.PolicyParty:
    return agent_pb2.PolicyParty(
        name=name, identity=end.party.identity, labels=end.party.labels.texts(), origin=end.origin
    )


def _rule(trace: RuleTrace) -> agent_pb2.ExplainedRule:
    return agent_pb2.ExplainedRule(
        kind=trace.ref.kind,
        namespace=trace.ref.namespace,
        name=trace.ref.name,
        path=trace.rule.path,
        verdict=trace.rule.verdict.value,
        decides=trace.decides,
        misses=[
            f"{miss.value}: {note}" for miss, note in zip(trace.misses, trace.notes, strict=True)
        ],
    )


def _node_of(entry: Entry) -> str:
    """The node that an address is on, by its address; empty for this one and for none."""
    here = entry.tunnel_ipv4 is None and (entry.pod_name or entry.identity == ReservedIdentity.HOST)
    return "" if here else entry.host_ip
