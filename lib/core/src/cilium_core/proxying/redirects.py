"""What a proxy enforces on its ports: as values, as messages, and on disk.

The copy on disk is the snapshot message as JSON. A proxy that starts while the agent is away
enforces what it enforced before; a file that cannot be read is as good as none, and then the ports
stay closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium.proxy.v1 import proxy_pb2
from google.protobuf import json_format

from cilium_core.errors import InvalidError
from cilium_core.files import write_atomic
from cilium_core.policy.l7 import DnsRule, KafkaRule, L7Kind, Redirect

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KINDS = {
    L7Kind.DNS: proxy_pb2.PROXY_KIND_DNS,
    L7Kind.KAFKA: proxy_pb2.PROXY_KIND_KAFKA,
}
"""The kinds whose proxies subscribe."""


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """What changes the behaviour of a DNS proxy; times in seconds."""

    reject_rcode: int = 5
    """5 (refused) or 3 (no such name)."""

    response_max_delay_s: float = 0.1
    concurrency_limit: int = 0
    """Most queries in flight; 0 is any number."""

    concurrency_grace_s: float = 0.0

    def message(self) -> proxy_pb2.DnsOptions:
        """The options as the agent sends them."""
        return proxy_pb2.DnsOptions(
            reject_rcode=self.reject_rcode,
            response_max_delay_ms=round(self.response_max_delay_s * 1000),
            concurrency_limit=self.concurrency_limit,
            concurrency_grace_ms=round(self.concurrency_grace_s * 1000),
        )

    @classmethod
    def of(cls, message: proxy_pb2.DnsOptions) -> DnsOptions:
        """The options that a message stands for."""
        return cls(
            reject_rcode=message.reject_rcode or 5,
            response_max_delay_s=message.response_max_delay_ms / 1000,
            concurrency_limit=message.concurrency_limit,
            concurrency_grace_s=message.concurrency_grace_ms / 1000,
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """Everything that one proxy is to do: its ports with what they enforce."""

    redirects: Mapping[int, Redirect] = field(default_factory=dict)
    dns_options: DnsOptions = DnsOptions()


def to_message(port: int, redirect: Redirect) -> proxy_pb2.Redirect:
    """A port and what it enforces, as a message."""
    return proxy_pb2.Redirect(
        port=port,
        ingress=redirect.ingress,
        allow_all=redirect.allow_all,
        audit=redirect.audit,
        dns=[proxy_pb2.DnsRule(name=rule.name, pattern=rule.pattern) for rule in redirect.dns],
        kafka=[
            proxy_pb2.KafkaRule(
                api_keys=sorted(rule.api_keys),
                api_version=rule.api_version,
                client_id=rule.client_id,
                topic=rule.topic,
            )
            for rule in redirect.kafka
        ],
    )


def from_message(kind: L7Kind, message: proxy_pb2.Redirect) -> Redirect:
    """What a port enforces, from a message. Raises `InvalidError` on one that makes no sense."""
    if not 0 < message.port < 65536:
        raise InvalidError(f"a redirect names port {message.port}; a port is 1 to 65535")
    return Redirect(
        ingress=message.ingress,
        kind=kind,
        dns=tuple(DnsRule(rule.name, rule.pattern) for rule in message.dns),
        kafka=tuple(
            KafkaRule(
                frozenset(rule.api_keys),
                rule.api_version if rule.HasField("api_version") else None,
                rule.client_id,
                rule.topic,
            )
            for rule in message.kafka
        ),
        allow_all=message.allow_all,
        audit=message.audit,
    )


def apply(
    kind: L7Kind, assignment: Assignment, change: proxy_pb2.WatchRedirectsResponse
) -> Assignment:
    """An assignment after a change. Raises `InvalidError`; then nothing of it counts."""
    redirects = {} if change.snapshot else dict(assignment.redirects)
    for port in change.deleted_ports:
        redirects.pop(port, None)
    for message in change.redirects:
        redirects[message.port] = from_message(kind, message)
    options = assignment.dns_options
    if change.HasField("dns_options"):
        options = DnsOptions.of(change.dns_options)
    return Assignment(redirects, options)


def snapshot(assignment: Assignment) -> proxy_pb2.WatchRedirectsResponse:
    """A whole assignment as one message."""
    return proxy_pb2.WatchRedirectsResponse(
        snapshot=True,
        redirects=[to_message(port, one) for port, one in sorted(assignment.redirects.items())],
        dns_options=assignment.dns_options.message(),
    )


def save(path: Path, assignment: Assignment) -> None:
    """Keep an assignment on disk. Raises `OSError`; then the old copy stays."""
    text = json_format.MessageToJson(snapshot(assignment), preserving_proto_field_name=True)
    write_atomic(path, text.encode())


def load(path: Path, kind: L7Kind) -> Assignment | None:
    """The assignment on disk, None when there is none.

    Raises `InvalidError` naming the file when it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}") from error
    try:
        message = json_format.Parse(content, proxy_pb2.WatchRedirectsResponse())
        return apply(kind, Assignment(), message)
    except (json_format.ParseError, UnicodeDecodeError, InvalidError) as error:
        raise InvalidError(
            f"{path} does not hold redirects ({error}); the agent will send them anew"
        ) from error


def changed_ports(old: Mapping[int, Redirect], new: Mapping[int, Redirect]) -> Iterable[int]:
    """Ports of `new` that are not in `old`, or enforce something else there."""
    return (port for port, redirect in new.items() if old.get(port) != redirect)
