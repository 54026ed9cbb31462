"""The policy that would allow what is denied for want of a rule, as an object ready to apply.

It says no more than the traffic at hand: this end, by its labels; that peer, by its labels, its
entity or its address; this port; and if a request is asked about, that request. Pure.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from typing import TYPE_CHECKING, Any, Final

from cilium_core.identities import ReservedIdentity, cidr_of, is_world
from cilium_core.labels import (
    KEY_CLUSTER,
    KEY_NAMESPACE,
    OWN_KEYS_PREFIX,
    SOURCE_K8S,
    SOURCE_NODE,
    SOURCE_RESERVED,
)
from cilium_core.policy.ports import Protocol
from cilium_core.policy.requests import DnsQuestion, HttpRequest
from cilium_core.policy.rules import Direction
from cilium_core.policy.translating import KIND_CLUSTERWIDE, KIND_NAMESPACED

if TYPE_CHECKING:
    from cilium_core.labels import LabelSet
    from cilium_core.policy.explaining import DirectionExplanation, Explanation, Party, Traffic

_ENTITIES: Final = tuple(
    reserved.label_name
    for reserved in (
        ReservedIdentity.KUBE_APISERVER,
        ReservedIdentity.HOST,
        ReservedIdentity.REMOTE_NODE,
        ReservedIdentity.HEALTH,
        ReservedIdentity.INIT,
        ReservedIdentity.INGRESS,
        ReservedIdentity.UNMANAGED,
    )
)
_ICMP: Final = {Protocol.ICMP: "IPv4", Protocol.ICMPV6: "IPv6"}
_WITH_DNS: Final = (Protocol.TCP, Protocol.UDP)
_HOSTNAME: Final = "kubernetes.io/hostname"
_WITH_PORTS: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


def suggest(explanation: Explanation, direction: DirectionExplanation) -> dict[str, Any] | None:
    """The smallest policy that allows the traffic at one end of it.

    None where nothing is missing: the traffic is allowed there, or denied by a rule that no other
    rule can overrule, as one of the baseline can. A policy for an end that none isolates yet does
    not isolate it either.
    """
    if not direction.overrulable:
        return None
    inbound = direction.direction is Direction.INGRESS
    subject, peer = explanation.destination, explanation.source
    if not inbound:
        subject, peer = peer, subject
    namespace = subject.labels.value(KEY_NAMESPACE, SOURCE_K8S)
    word = "from" if inbound else "to"
    name = "ingress" if inbound else "egress"
    host = subject.identity == ReservedIdentity.HOST
    item = _peer(peer, subject, word) | _ports(explanation.traffic, inbound=inbound, host=host)
    spec: dict[str, Any] = _subject(subject) | {name: [item]}
    if not direction.isolated:
        spec["enableDefaultDeny"] = {name: False}
    metadata = {"name": _name(f"allow {_short(subject)} {word} {_short(peer)}", spec)}
    if namespace:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "cilium.io/v2",
        "kind": KIND_NAMESPACED if namespace else KIND_CLUSTERWIDE,
        "metadata": metadata,
        "spec": spec,
    }


def _subject(subject: Party) -> dict[str, Any]:
    if subject.identity != ReservedIdentity.HOST:
        return {"endpointSelector": {"matchLabels": _own_labels(subject.labels)}}
    hostname = subject.labels.get(_HOSTNAME, SOURCE_NODE)
    return {"nodeSelector": {"matchLabels": {_HOSTNAME: hostname.value}} if hostname else {}}


def _own_labels(labels: LabelSet) -> dict[str, str]:
    """What tells pods of one namespace apart, or the reserved label of what is no pod."""
    return {
        f"{label.source}:{label.key}": label.value
        for label in labels
        if label.source in (SOURCE_K8S, SOURCE_RESERVED)
        and label.key not in (KEY_NAMESPACE, KEY_CLUSTER)
        and not label.key.startswith(OWN_KEYS_PREFIX)
    }


def _peer(peer: Party, subject: Party, word: str) -> dict[str, Any]:
    if is_world(peer.labels):
        prefix = ipaddress.ip_network(peer.address) if peer.address else cidr_of(peer.labels)
        if prefix is not None:
            return {f"{word}CIDR": [str(prefix)]}
        return {f"{word}Entities": ["world"]}
    for name in _ENTITIES:
        if peer.labels.get(name, SOURCE_RESERVED) is not None:
            return {f"{word}Entities": [name]}
    labels = _own_labels(peer.labels)
    for key in (KEY_NAMESPACE, KEY_CLUSTER):
        value = peer.labels.value(key, SOURCE_K8S)
        if value and value != subject.labels.value(key, SOURCE_K8S):
            labels[f"{SOURCE_K8S}:{key}"] = value
    return {f"{word}Endpoints": [{"matchLabels": labels}]}


def _ports(traffic: Traffic, *, inbound: bool, host: bool) -> dict[str, Any]:
    if traffic.protocol in _ICMP:
        family = _ICMP[Protocol(traffic.protocol)]
        return {"icmps": [{"fields": [{"family": family, "type": traffic.port}]}]}
    if traffic.protocol in _WITH_PORTS:
        name = Protocol(traffic.protocol).name
        rule: dict[str, Any] = {"ports": [{"port": str(traffic.port), "protocol": name}]}
        return {"toPorts": [rule | _requests(traffic, inbound=inbound, host=host)]}
    return {}


def _requests(traffic: Traffic, *, inbound: bool, host: bool) -> dict[str, Any]:
    """Rules for the one request that is asked about, where rules about requests may be."""
    request = traffic.request
    if isinstance(request, HttpRequest) and traffic.protocol == Protocol.TCP and not host:
        http = {"method": re.escape(request.method), "path": re.escape(request.path)}
        if request.host:
            http["host"] = re.escape(request.host)
        return {"rules": {"http": [http]}}
    if isinstance(request, DnsQuestion) and not inbound and traffic.protocol in _WITH_DNS:
        return {"rules": {"dns": [{"matchName": request.name.lower()}]}}
    return {}


def _name(text: str, spec: dict[str, Any]) -> str:
    """Such as `allow-web-from-client-1f3a5c`; policies that say something else have another name.

    So one suggestion that is applied never replaces another.
    """
    digest = hashlib.blake2b(json.dumps(spec, sort_keys=True).encode(), digest_size=3).hexdigest()
    words = re.sub(r"[^a-z0-9]+", "-", text.lower())[:56].strip("-")
    return f"{words}-{digest}"


def _short(party: Party) -> str:
    """A word for an end: its address outside, else its most telling label."""
    if party.address and is_world(party.labels):
        return party.address
    labels = _own_labels(party.labels)
    for key in ("k8s:app", "k8s:app.kubernetes.io/name", "k8s:k8s-app", "k8s:name"):
        if labels.get(key):
            return labels[key]
    key, value = next(iter(labels.items()), ("", ""))
    return value or key.partition(":")[2] or "all"
