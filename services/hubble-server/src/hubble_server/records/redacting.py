"""Takes out of records what nobody is to see, before they are kept. Pure but for its argument."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flow import flow_pb2

REDACTED: Final = "HUBBLE_REDACTED"
"""Stands where something was taken out."""

_AUTHORITY = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#]*)@")
_QUERY = re.compile(r"[?#].*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Redaction:
    """What to take out. Names of headers in lower case; at most one of the two sets is not empty.

    With neither set, the values of all headers are taken out.
    """

    url_query: bool = False
    user_info: bool = True
    headers_allowed: frozenset[str] = frozenset()
    headers_denied: frozenset[str] = frozenset()
    kafka_api_key: bool = False

    def apply(self, l7: flow_pb2.Layer7) -> None:
        """Take it out of a record."""
        match l7.WhichOneof("record"):
            case "http":
                self._redact_http(l7.http)
            case "kafka":
                if self.kafka_api_key and l7.kafka.api_key:
                    l7.kafka.api_key = REDACTED

    def _redact_http(self, http: flow_pb2.HTTP) -> None:
        http.url = self.url(http.url)
        for header in http.headers:
            if self._hides(header.key.lower()):
                header.value = REDACTED

    def _hides(self, name: str) -> bool:
        if self.headers_allowed:
            return name not in self.headers_allowed
        return not self.headers_denied or name in self.headers_denied

    def url(self, url: str) -> str:
        """A URL without its password, and without query and fragment, as configured."""
        if self.user_info:
            url = _AUTHORITY.sub(_without_password, url, count=1)
        if self.url_query:
            url = _QUERY.sub("", url)
        return url


def _without_password(match: re.Match[str]) -> str:
    user, colon, _ = match[2].partition(":")
    shown = f"{user}:{REDACTED}" if colon else user
    return f"{match[1] or ''}//{shown}@"
