"""Policies that are not enforced as written: collected, counted, announced and published.

Nothing of that kind is silent: it is in `cilium status`, in a metric, in an agent event when it
begins and ends, and in a record of the store from which the objects' conditions are made.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING

from cilium_core.records import PolicyFinding, PolicyFindingsRecord
from cilium_core.telemetry import gauge, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_core.policy import PolicyRef

    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.feeds import Feed
    from cilium_agent.policies import Policies
    from cilium_agent.publishing import Publisher

log = get_logger()

NOT_ENFORCED = gauge(
    "cilium_policy_not_enforced", "Policy objects that are not enforced as written.", "reason"
)


class Reason(Enum):
    """Why a policy object is not enforced as written."""

    REFUSED = "refused"
    """It is not valid; a version from before stays in force, if there is one."""

    UNSUPPORTED = "unsupported"
    """It is valid, and this version does not know how to enforce it."""

    CONFLICT = "conflict"
    """It contradicts another one on some endpoint, which keeps its policy from before."""

    OUTRANKED = "outranked"
    """It meets another one in some peer and cannot be united with it; there it allows nothing."""

    OVERFLOW = "overflow"
    """Some endpoint's map is too small for it; what is missing is refused."""

    AMBIGUOUS_PORT = "ambiguous-port"
    """It names a port that pods number differently; the name opens nothing."""

    SPLIT_NETWORK = "split-network"
    """A network of it has some addresses of an identity, and others not."""


class Findings:
    """The findings as of the last `reconcile`."""

    def __init__(
        self,
        policies: Policies,
        table: EndpointTable,
        feed: Feed,
        publisher: Publisher,
        *,
        cluster: str,
        node: str,
    ) -> None:
        """Take the parts; `cluster` and `node` name this node's record."""
        self.present: frozenset[PolicyFinding] = frozenset()
        self._policies = policies
        self._table = table
        self._feed = feed
        self._publisher = publisher
        self._cluster = cluster
        self._node = node

    async def reconcile(self) -> None:
        """Collect, and tell what is new and what is over."""
        found = frozenset(self._collect())
        NOT_ENFORCED.replace(
            {(reason,): float(n) for reason, n in Counter(f.reason for f in found).items()}
        )
        for finding in sorted(found - self.present):
            self._feed.finding(finding, over=False)
        for finding in sorted(self.present - found):
            self._feed.finding(finding, over=True)
        if found != self.present:
            self.present = found
            self._publish()

    def _publish(self) -> None:
        record = PolicyFindingsRecord(self._cluster, self._node, tuple(sorted(self.present)))
        if record.findings:
            self._publisher.want(record.key, record.to_json())
        else:
            self._publisher.drop(record.key)

    def _collect(self) -> Iterator[PolicyFinding]:
        policies = self._policies
        for ref, refused in policies.refused.items():
            reason = Reason.UNSUPPORTED if refused.unsupported else Reason.REFUSED
            yield _finding(ref, reason, refused.error)
        for endpoint in self._table:
            for conflict in endpoint.conflicts:
                for ref in conflict.policies:
                    text = f"endpoint {endpoint.id} ({endpoint.pod}): {conflict}"
                    yield _finding(ref, Reason.CONFLICT, text)
            for ref in endpoint.overflown:
                text = f"endpoint {endpoint.id} ({endpoint.pod}): {endpoint.error}"
                yield _finding(ref, Reason.OVERFLOW, text)
        for place, meetings in policies.engine.meetings().items():
            for pair in meetings:
                text = f"endpoint {place}: {pair}; where both select a peer, only the first counts"
                yield _finding(pair.second.ref, Reason.OUTRANKED, text)
        for ref, names in policies.engine.ambiguous_names().items():
            text = f"port names {_list(names)} have several numbers in the cluster and open nothing"
            yield _finding(ref, Reason.AMBIGUOUS_PORT, text)
        networks = policies.engine.bindings.networks
        for policy in policies.engine.repository:
            if split := networks.split(policy):
                text = f"a network holds some but not all addresses of {_list(map(str, split))}"
                yield _finding(policy.ref, Reason.SPLIT_NETWORK, text)


def _finding(ref: PolicyRef, reason: Reason, message: str) -> PolicyFinding:
    return PolicyFinding(ref.kind, ref.namespace, ref.name, reason.value, message)


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
