"""What rules say above the transport layer: HTTP, DNS, Kafka and TLS.

`L7Match` is what one port list of a policy says. `Redirect` is what a proxy has to enforce for one
entry of a policy map: the union of all that the rules behind the entry say. A redirect is a value;
equal redirects share one proxy port, and a different one is never enforced on that port. Proxies
know nothing of identities: which connections reach which port is the data plane's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class L7Kind(Enum):
    """What a proxy must be able to read."""

    HTTP = "http"
    KAFKA = "kafka"
    DNS = "dns"
    TLS = "tls"
    """Nothing but the server name and the certificates of TLS."""


class Mismatch(Enum):
    """What happens to a header that does not match; the request goes on in all cases."""

    LOG = "LOG"
    ADD = "ADD"
    DELETE = "DELETE"
    REPLACE = "REPLACE"


class SecretRef(NamedTuple):
    """Names a Secret object."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, order=True)
class HeaderMatch:
    """A header that a request must have.

    With neither `value` nor `secret`, any value will do. With `pattern`, a value that is not
    literally equal may also match as an RE2 expression, in full. `name` is in lower case.
    """

    name: str
    value: str | None = None
    pattern: bool = False
    secret: SecretRef | None = None
    mismatch: Mismatch | None = None


@dataclass(frozen=True, slots=True)
class HttpRule:
    """Requests that are allowed; what is empty is not looked at.

    `path` (with the query), `method` and `host` are RE2 expressions for the whole value.
    `server_names` limits the rule to connections with one of these SNI values; only a `Redirect`
    has such rules, where policies with different names meet.
    """

    path: str = ""
    method: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()
    server_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DnsRule:
    """Names that may be asked for: one name, or a pattern with stars; lower case, as written."""

    name: str = ""
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class KafkaRule:
    """Requests that are allowed; what is empty or None is not looked at."""

    api_keys: frozenset[int] = frozenset()
    api_version: int | None = None
    client_id: str = ""
    topic: str = ""


@dataclass(frozen=True, slots=True)
class TlsContext:
    """Where the keys for one side of a connection lie: items of a Secret."""

    secret: SecretRef
    trusted_ca: str = ""
    certificate: str = ""
    private_key: str = ""


@dataclass(frozen=True, slots=True)
class L7Match:
    """What one port list of a policy says above the transport layer.

    Exactly the rules of `kind` are filled in; none at all means that every request is allowed, as
    with `http: [{}]`. `server_names` limits TLS connections to some SNI values, and may stand
    beside rules when `terminating` is set.
    """

    kind: L7Kind
    http: tuple[HttpRule, ...] = ()
    dns: tuple[DnsRule, ...] = ()
    kafka: tuple[KafkaRule, ...] = ()
    server_names: frozenset[str] = frozenset()
    terminating: TlsContext | None = None
    originating: TlsContext | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """What a proxy port enforces: a union of matches, in an order that makes equal ones equal.

    `allow_all` lets every request pass and only reports it; then there are no rules but those of
    HTTP that change headers. `server_names` limits connections in any case; empty is no limit.
    `audit` reports what it would refuse and passes it.
    """

    ingress: bool
    kind: L7Kind
    http: tuple[HttpRule, ...] = ()
    dns: tuple[DnsRule, ...] = ()
    kafka: tuple[KafkaRule, ...] = ()
    server_names: frozenset[str] = frozenset()
    terminating: TlsContext | None = None
    originating: TlsContext | None = None
    allow_all: bool = False
    audit: bool = False

    @property
    def restricts(self) -> bool:
        """Whether some connection or request is refused, or would be but for `audit`."""
        return not self.allow_all or bool(self.server_names)
