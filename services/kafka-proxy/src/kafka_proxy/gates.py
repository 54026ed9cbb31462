"""What stands at one port: whether a request passes, and what is said about it. Pure.

A gate that enforces nothing lets everything by, also what is no Kafka at all; one that audits does
so too, and says what it would have refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.policy.l7 import Redirect
from flow import flow_pb2

from kafka_proxy.deciding import allows
from kafka_proxy.describing import about_brokers

if TYPE_CHECKING:
    from kafka_proxy.requests import Request


@dataclass(frozen=True, slots=True)
class Gate:
    """A port and what it enforces."""

    port: int
    redirect: Redirect

    @property
    def enforcing(self) -> bool:
        """Whether anything is ever refused."""
        return not self.redirect.allow_all and not self.redirect.audit

    def verdict(self, request: Request) -> flow_pb2.Verdict:
        """FORWARDED, AUDIT (passes) or DROPPED."""
        if self.redirect.allow_all or allows(self.redirect.kafka, request):
            return flow_pb2.FORWARDED
        return flow_pb2.AUDIT if self.redirect.audit else flow_pb2.DROPPED

    def substitute(self, refused: Request) -> Request | None:
        """What goes to the broker instead of a refused request, if anything may."""
        other = about_brokers(refused)
        return other if other is not None and allows(self.redirect.kafka, other) else None

    @property
    def verdict_of_garbage(self) -> flow_pb2.Verdict:
        """What is said of bytes that are no request."""
        return flow_pb2.ERROR if self.enforcing else flow_pb2.FORWARDED
