"""Everything that Envoy is configured with, as a value made of redirects, secrets and options.

Equal input gives equal bytes, so that an agent that restarts tells Envoy nothing new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium_core.policy.l7 import Redirect
from google.protobuf.any_pb2 import Any

from cilium_agent.proxies.envoy import clusters, rules, tls
from cilium_agent.proxies.envoy.listeners import listener, speeches
from cilium_agent.proxies.envoy.logging import rates
from cilium_agent.proxies.envoy.mismatches import with_log_action
from cilium_agent.proxies.envoy.packing import pack

if TYPE_CHECKING:
    from cilium_agent.proxies.envoy.options import EnvoyOptions
    from cilium_agent.proxies.secrets import Secrets

_TYPES = "type.googleapis.com/"
CLUSTER = f"{_TYPES}envoy.config.cluster.v3.Cluster"
LISTENER = f"{_TYPES}envoy.config.listener.v3.Listener"
SECRET = f"{_TYPES}envoy.extensions.transport_sockets.tls.v3.Secret"
RATE = f"{_TYPES}envoy.type.v3.TokenBucket"


@dataclass(frozen=True)
class Resources:
    """What to tell Envoy: for each type of resource, its resources by name.

    `problems` says what is wrong with a redirect, such as a Secret that is missing: then parts of
    it refuse what they cannot judge.
    """

    by_type: Mapping[str, Mapping[str, Any]]
    names: Mapping[Redirect, str] = field(default_factory=dict)
    problems: Mapping[Redirect, tuple[str, ...]] = field(default_factory=dict)
    reported: Mapping[str, tuple[rules.Condition, ...]] = field(default_factory=dict)
    """Of listeners by name: rules whose mismatches are to be reported."""


NOTHING = Resources({CLUSTER: {}, LISTENER: {}, SECRET: {}, RATE: {}})


class Builder:
    """Makes resources; what did not change since the last time is not made again."""

    def __init__(self, secrets: Secrets, options: EnvoyOptions) -> None:
        self._secrets = secrets
        self._options = options
        self._parts: dict[tuple[Redirect, int], _Part] = {}

    def build(self, ports: Mapping[Redirect, int]) -> Resources:
        """The resources for redirects on their ports."""
        wanted = {(redirect, port) for redirect, port in ports.items()}
        self._parts = {key: part for key, part in self._parts.items() if key in wanted}
        for key in wanted - self._parts.keys():
            self._parts[key] = self._part(*key)
        parts = {redirect: self._parts[redirect, port] for redirect, port in ports.items()}
        by_type: dict[str, dict[str, Any]] = {CLUSTER: {}, LISTENER: {}, SECRET: {}}
        by_type[RATE] = rates(self._options)
        for part in parts.values():
            by_type[LISTENER][part.name] = part.listener
            by_type[CLUSTER].update(part.clusters)
            for item in part.items:
                secret = tls.xds_secret(item, self._secrets)
                if secret is not None:
                    by_type[SECRET][item.text] = pack(secret)
        return Resources(
            by_type,
            {redirect: part.name for redirect, part in parts.items()},
            {redirect: part.problems for redirect, part in parts.items() if part.problems},
            {part.name: part.reported for part in parts.values() if part.reported},
        )

    def secrets_changed(self) -> None:
        """Make anew what depends on secrets."""
        self._parts = {key: part for key, part in self._parts.items() if not uses_secrets(key[0])}

    def _part(self, redirect: Redirect, port: int) -> _Part:
        needs = tls.TlsNeeds(self._secrets)
        reading = rules.read(redirect.http, self._secrets)
        made = listener(redirect, port, reading.conditions, needs, self._options)
        kinds = [(speech, redirect.originating) for speech in speeches(redirect)]
        if redirect.audit and redirect.server_names:  # what is not listed passes as it is
            kinds.append((clusters.Speech.AS_CLIENT, None))
        used = {}
        for speech, originating in kinds:
            one = clusters.cluster(redirect.ingress, speech, originating, needs, self._options)
            used[one.name] = pack(one)
        return _Part(
            name=made.name,
            listener=pack(made),
            clusters=used,
            items=tuple(needs.items.values()),
            reported=with_log_action(reading.conditions),
            problems=tuple(dict.fromkeys((*reading.problems, *needs.problems))),
        )


@dataclass(frozen=True)
class _Part:
    name: str
    listener: Any
    clusters: Mapping[str, Any]
    items: tuple[tls.SecretItem, ...]
    reported: tuple[rules.Condition, ...]
    problems: tuple[str, ...]


def uses_secrets(redirect: Redirect) -> bool:
    """Whether the configuration of a redirect depends on Secret objects."""
    return (
        redirect.terminating is not None
        or redirect.originating is not None
        or any(match.secret for rule in redirect.http for match in rule.headers)
    )


def version(resources: Mapping[str, Any]) -> str:
    """A version made of the content: equal resources have equal versions, in every process."""
    digest = hashlib.blake2b(digest_size=10)
    for name in sorted(resources):
        digest.update(f"{name}\0{len(resources[name].value)}\0".encode())
        digest.update(resources[name].value)
    return digest.hexdigest()
