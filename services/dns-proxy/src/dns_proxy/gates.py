"""Whether a query passes: what one redirect says, with the outcome kept for each message.

A gate belongs to one version of one redirect; when the redirect changes, a new gate takes its
place, so nothing that was judged under the old rules is found again. Clients repeat themselves, so
the judgement of a message is found by its bytes; only the first look reads and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium_core.policy.fqdn import compile_name

from dns_proxy import records
from dns_proxy.caching import TwoGenerations
from dns_proxy.messages import Fault, MessageError, Query, parse_query

if TYPE_CHECKING:
    from cilium_core.policy.l7 import Redirect


KEPT_BYTES: Final = 512
"""Longer messages are judged each time."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of a message; `query` is None for one that is not understood."""

    query: Query | None
    allowed: bool
    fault: Fault | None
    request_record: bytes
    """The part of the request's record that is the same for every such message."""


class Gate:
    """What one redirect lets pass."""

    def __init__(self, port: int, redirect: Redirect) -> None:
        self.port = port
        self.redirect = redirect
        self.response_record = records.response_head(port, redirect)
        """The part that the records of all responses share."""
        patterns = [compile_name(name=rule.name, pattern=rule.pattern) for rule in redirect.dns]
        self._all = redirect.allow_all or any(pattern.every for pattern in patterns)
        self._names = frozenset(pattern.exact for pattern in patterns if pattern.exact is not None)
        self._patterns = [pattern for pattern in patterns if pattern.exact is None]
        self._judged: TwoGenerations[bytes, Judgement] = TwoGenerations()

    def allows(self, name: str) -> bool:
        """Whether a name in normal form may be asked for."""
        return (
            self._all
            or name in self._names
            or any(pattern.matches_normal(name) for pattern in self._patterns)
        )

    def judge(self, data: bytes) -> Judgement:
        """What becomes of a message, whatever its id."""
        key = data[2:]
        judgement = self._judged.get(key)
        if judgement is None:
            judgement = self._judge(data)
            if len(data) <= KEPT_BYTES:
                self._judged.put(key, judgement)
        return judgement

    def _judge(self, data: bytes) -> Judgement:
        try:
            query = parse_query(data)
        except MessageError as error:
            record = records.refused_message(self.port, self.redirect)
            return Judgement(None, False, error.fault, record)
        by_rule = self.allows(query.name)
        allowed = by_rule or self.redirect.audit
        record = records.request(self.port, self.redirect, query, by_rule=by_rule)
        return Judgement(query, allowed, None, record)
