"""Whether a request may pass: rules of one redirect against one request. Pure functions.

A request passes when rules that fit its kind, version and client allow every topic it names, each
by some rule; a rule without a topic allows any. For a request that names none, a rule's topic is
not looked at. A request whose topics are not known, since it cannot be read or means them by id,
is never allowed by a rule with a topic.

A read that continues a session names only what changed since the read that began it, which was
judged; brokers let no client continue the session of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.policy.l7 import KafkaRule

    from kafka_proxy.requests import Header, Request


def allows(rules: Iterable[KafkaRule], request: Request) -> bool:
    """Whether the rules let a request pass."""
    fitting = [rule for rule in rules if _fits(rule, request.header)]
    if not fitting:
        return False
    allowed = {rule.topic for rule in fitting}
    if "" in allowed:
        return True
    body = request.body
    if body is None or body.unnamed:
        return False
    return all(topic in allowed for topic in body.topics)


def _fits(rule: KafkaRule, header: Header) -> bool:
    """Whether a rule speaks of requests with such a header."""
    if rule.api_keys and header.key not in rule.api_keys:
        return False
    if rule.api_version is not None and header.version != rule.api_version:
        return False
    return not rule.client_id or header.client_id == rule.client_id
