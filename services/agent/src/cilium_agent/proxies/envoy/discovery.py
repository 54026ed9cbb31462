"""xDS, state of the world, without I/O: what Envoy asks, what it is told, what it made of it.

`Offers` is what Envoy shall have, `Conversation` one stream. Versions are made of content, so that
an Envoy that outlived the agent is told nothing when nothing changed. Whatever a peer sends, a
conversation answers or ignores it; it never fails.

A rejection (NACK) names the listeners that Envoy could not make; all others of the same response
are in force. When it names none, none of those that were new is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium_core.telemetry import counter, get_logger
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any

from cilium_agent.proxies.envoy.resources import (
    CLUSTER,
    LISTENER,
    NOTHING,
    RATE,
    SECRET,
    version,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_agent.proxies.envoy.resources import Resources

log = get_logger()

REJECTED = counter("cilium_proxy_xds_rejected_total", "Configurations Envoy refused.", "type")
ODD = counter("cilium_proxy_xds_ignored_total", "Requests over xDS that make no sense.", "reason")

ORDER = (CLUSTER, SECRET, RATE, LISTENER)
"""Clusters come before the listeners that use them."""

_BY_NAME = (SECRET, RATE)
"""Types that have no subscription to all of them."""

_MAX_ERROR = 2000


def short(type_url: str) -> str:
    """The last part of a type, for people."""
    return type_url.rpartition(".")[2]


class Offers:
    """What Envoy shall have, and what it said about it."""

    def __init__(self) -> None:
        self.ready = False
        """Until this is set, nothing is answered."""

        self.by_type: dict[str, dict[str, Any]] = {type_url: {} for type_url in ORDER}
        self.accepted: dict[str, bytes] = {}
        """Listeners that Envoy has, with their content."""

        self.rejected: dict[str, str] = {}
        """Listeners that Envoy refused, and why."""

        self.on_answer: Callable[[], None] = lambda: None
        self.replace(NOTHING)

    def replace(self, resources: Resources) -> None:
        """Offer these from now on. Clusters stay: a listener on its way out may use one."""
        for type_url, named in resources.by_type.items():
            kept = self.by_type[CLUSTER] if type_url == CLUSTER else {}
            self.by_type[type_url] = {**kept, **named}
        listeners = self.by_type[LISTENER]
        self.rejected = {name: text for name, text in self.rejected.items() if name in listeners}

    def has(self, name: str) -> bool:
        """Whether Envoy has a listener as it is offered now."""
        offered = self.by_type[LISTENER].get(name)
        return offered is not None and self.accepted.get(name) == offered.value

    def accept(self, type_url: str, sent: Mapping[str, Any]) -> None:
        """Envoy has all of these."""
        if type_url == LISTENER:
            self.accepted = {name: packed.value for name, packed in sent.items()}
            self.rejected = {}
        self.on_answer()

    def reject(self, type_url: str, sent: Mapping[str, Any], error: str) -> None:
        """Envoy refused something of these."""
        REJECTED.add(1, short(type_url))
        error = error[:_MAX_ERROR]
        named = [name for name in sent if name in error]
        if type_url == LISTENER:
            known = [name for name in sent if self.accepted.get(name) == sent[name].value]
            failed = named or [name for name in sent if name not in known]
            self.rejected = {name: _about(name, error) for name in failed}
            good = [name for name in sent if (name in known or named) and name not in failed]
            self.accepted = {
                **{name: self.accepted[name] for name in failed if name in self.accepted},
                **{name: sent[name].value for name in good},
            }
            named = failed
        log.error("Envoy refused a configuration", type=short(type_url), names=named, error=error)
        self.on_answer()

    def forget_answers(self) -> None:
        """Nobody knows what Envoy has now."""
        self.accepted, self.rejected = {}, {}
        self.on_answer()


def _about(name: str, error: str) -> str:
    """The part of an error text that is about one listener."""
    text = error[error.index(name) + len(name) :] if name in error else error
    return text.lstrip(": ").splitlines()[0] if text.strip(": \n") else error


@dataclass
class _Subscription:
    names: frozenset[str] = frozenset()
    nonce: str = ""
    version: str | None = None
    """Of what was sent last, or of what Envoy had when it came."""

    sent: Mapping[str, Any] = field(default_factory=dict)
    answered: bool = True


class Conversation:
    """One stream. `request` and `push` return what to send."""

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._subscriptions: dict[str, _Subscription] = {}
        self._nonces = 0

    def request(
        self, request: discovery_pb2.DiscoveryRequest
    ) -> list[discovery_pb2.DiscoveryResponse]:
        """Take a request: a subscription, an acknowledgement or a rejection."""
        type_url = request.type_url
        if type_url not in self._offers.by_type:
            ODD.add(1, "type")
            return []
        subscription = self._subscriptions.setdefault(type_url, _Subscription())
        if request.response_nonce != subscription.nonce:
            ODD.add(1, "nonce")
            return []
        subscription.names = frozenset(request.resource_names)
        if not subscription.nonce:
            self._greet(type_url, subscription, request.version_info)
        elif not subscription.answered:
            subscription.answered = True
            if request.HasField("error_detail"):
                error = request.error_detail.message
                self._offers.reject(type_url, subscription.sent, error)
            else:
                self._offers.accept(type_url, subscription.sent)
        return self._response(type_url)

    def push(self, *, again: bool = False) -> list[discovery_pb2.DiscoveryResponse]:
        """What changed since it was sent last; with `again`, also listeners that were refused."""
        if again and self._offers.rejected and LISTENER in self._subscriptions:
            self._subscriptions[LISTENER].version = None
        return [response for type_url in ORDER for response in self._response(type_url)]

    def _greet(self, type_url: str, subscription: _Subscription, known: str) -> None:
        """Envoy subscribes, and tells the version that it has from an earlier conversation."""
        if not self._offers.ready or subscription.version is not None or not known:
            return
        wanted = self._wanted(type_url, subscription)
        if known == version(wanted):
            subscription.version, subscription.sent = known, wanted
            self._offers.accept(type_url, wanted)

    def _wanted(self, type_url: str, subscription: _Subscription) -> Mapping[str, Any]:
        offered = self._offers.by_type[type_url]
        if not subscription.names or "*" in subscription.names:
            return {} if type_url in _BY_NAME else offered
        return {name: offered[name] for name in subscription.names & offered.keys()}

    def _response(self, type_url: str) -> list[discovery_pb2.DiscoveryResponse]:
        subscription = self._subscriptions.get(type_url)
        if subscription is None or not self._offers.ready:
            return []
        wanted = self._wanted(type_url, subscription)
        now = version(wanted)
        if now == subscription.version or (type_url in _BY_NAME and not wanted):
            return []
        self._nonces += 1
        subscription.nonce = str(self._nonces)
        subscription.version = now
        subscription.sent = dict(wanted)
        subscription.answered = False
        return [
            discovery_pb2.DiscoveryResponse(
                version_info=now,
                resources=[wanted[name] for name in sorted(wanted)],
                type_url=type_url,
                nonce=subscription.nonce,
            )
        ]
