"""Counting flows, at the rate the kernel writes them.

Flows that a metric cannot tell apart are one group: of each group one message is made and shown to
the plugin, and what it says is kept, so that a batch costs a sort and one addition for each group
in it. What proxies saw comes as messages anyway, and goes to the plugins one by one.

Used on the ingest thread; the set of metrics is replaced as a whole from elsewhere.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
from cilium_core import flow_filters
from cilium_core.telemetry.metrics import Exemplar
from flow import flow_pb2

from hubble_server.encoding.encoder import Encoder
from hubble_server.filters import FilterContext, Filters, compile_filters
from hubble_server.filters.columns import Columns
from hubble_server.flows.grouping import hashes, mixed
from hubble_server.metrics.plugins import Http, Plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cilium_core.telemetry.metrics import Counter, Histogram
    from numpy.typing import NDArray

    from hubble_server.facts import NodeFacts
    from hubble_server.flows.columns import Batch
    from hubble_server.metadata.directory import Directory
    from hubble_server.metrics.plugins import Increment

FORGET_AFTER_S: Final = 60.0
"""How long series about a pod outlive it."""

_GROUPS: Final = 65_536
"""Groups remembered by one metric; then it starts over."""
_ICMP: Final = (1, 58)


class Counted:
    """One metric at work: a plugin, what it filters by, and the groups it has seen."""

    def __init__(
        self,
        plugin: Plugin,
        include: Sequence[flow_pb2.FlowFilter] = (),
        exclude: Sequence[flow_pb2.FlowFilter] = (),
    ) -> None:
        """Take a plugin and its filters. Raises FilterError."""
        self.plugin = plugin
        self.include, self.exclude = tuple(include), tuple(exclude)
        self._columns = tuple(dict.fromkeys((*plugin.columns, *plugin.context.columns)))
        self._passes = flow_filters.compile_filters(include, exclude)
        self._compiled: tuple[FilterContext, Filters] | None = None
        self._groups: dict[int, list[Increment]] = {}
        self.exemplars: dict[tuple[Counter | Histogram, tuple[str, ...]], Exemplar] = {}

    def count(self, batch: Batch, messages: Messages) -> None:
        """Count the flows of a batch."""
        if not self.plugin.columns:
            return
        if self.include or self.exclude:
            batch = self._chosen(batch, messages)
        if not len(batch["time_ns"]):
            return
        keys, first, counts = np.unique(self._keys(batch), return_index=True, return_counts=True)
        groups = self._groups
        new = [at for at, key in enumerate(keys.tolist()) if key not in groups]
        if new:
            if len(groups) + len(new) > _GROUPS:
                groups.clear()
                new = list(range(len(keys)))
            rows = first[new]
            sample = {name: column[rows] for name, column in batch.items()}
            for at, flow in zip(new, messages.make(sample), strict=True):
                groups[int(keys[at])] = self.plugin.increments(flow)
        grown: dict[Increment, int] = {}
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            for increment in groups[key]:
                grown[increment] = grown.get(increment, 0) + count
        for (counter, labels), count in grown.items():
            counter.add(count, *labels)

    def count_message(self, flow: flow_pb2.Flow) -> None:
        """Count one flow that is a message already."""
        if not self._passes(flow):
            return
        plugin = self.plugin
        trace = plugin.exemplar(flow) if isinstance(plugin, Http) else ""
        for counter, labels in plugin.increments(flow):
            counter.add(1, *labels)
            self._note(trace, counter, labels, 1.0)
        for histogram, value, labels in plugin.observations(flow):
            histogram.observe(value, *labels)
            self._note(trace, histogram, labels, value)

    def forget_pod(self, namespace: str, pod: str) -> None:
        """Drop the series that are about a pod, and their exemplars."""
        self.plugin.forget_pod(namespace, pod)
        if self.exemplars:
            left = {(one, key[0]) for one in self.plugin.instruments for key in one.series()}
            for gone in self.exemplars.keys() - left:
                del self.exemplars[gone]

    def _note(
        self, trace: str, of: Counter | Histogram, labels: tuple[str, ...], value: float
    ) -> None:
        if trace:
            self.exemplars[of, labels] = Exemplar(trace, value, time.time())

    def _chosen(self, batch: Batch, messages: Messages) -> Batch:
        if self._compiled is None or self._compiled[0] != messages.context:
            filters = compile_filters(messages.context, self.include, self.exclude)
            self._compiled = messages.context, filters
        filters = self._compiled[1]
        mask = filters.mask(Columns(batch, len(batch["time_ns"])))
        rows = np.flatnonzero(mask)
        chosen = {name: column[rows] for name, column in batch.items()}
        if filters.messages is None:
            return chosen
        passing = [self._passes(flow) for flow in messages.make(chosen)]
        return {name: column[passing] for name, column in chosen.items()}

    def _keys(self, batch: Batch) -> NDArray[np.uint64]:
        """Hashes of what the metric looks at: equal for flows of one group."""
        # of ICMP these are type and code
        is_icmp = np.isin(batch["protocol"], _ICMP)
        ports = (batch["source_port"] * is_icmp).astype(np.uint64) << np.uint64(16)
        # ports of clients are new with every connection, and each would be a group of its own
        tells = is_icmp | np.isin(batch["reply"], self.plugin.port_of)
        ports |= (batch["destination_port"] * tells).astype(np.uint64)
        return mixed(hashes(batch, self._columns), ports)


class Messages:
    """Makes messages of flows that are columns."""

    def __init__(self, context: FilterContext) -> None:
        self.context = context
        self._encoder = Encoder(context.node, context.directory)

    def make(self, batch: Batch) -> list[flow_pb2.Flow]:
        """One message for each flow of a batch."""
        return self._encoder.messages(batch)


class FlowMetrics:
    """All metrics of a server. `node` tells the present facts about the node."""

    def __init__(
        self,
        directory: Directory,
        node: Callable[[], NodeFacts],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._node = node
        self._clock = clock
        self._messages: Messages | None = None
        self._gone: list[tuple[float, str, str]] = []
        self.counted: tuple[Counted, ...] = ()
        """The metrics at work; replaced as a whole."""

    def count(self, batch: Batch) -> None:
        """Count the flows of a batch."""
        counted = self.counted
        if not counted:
            return
        context = FilterContext(self._directory, self._node())
        if self._messages is None or self._messages.context != context:
            self._messages = Messages(context)
        for one in counted:
            one.count(batch, self._messages)

    def count_records(self, encoded: Sequence[bytes]) -> None:
        """Count flows that are encoded messages."""
        counted = self.counted
        if not counted:
            return
        for data in encoded:
            flow = flow_pb2.Flow.FromString(data)
            for one in counted:
                one.count_message(flow)

    def note_gone(self, namespace: str, pod: str) -> None:
        """Note that a pod of this node is gone: its series follow after a while."""
        if pod:
            self._gone.append((self._clock() + FORGET_AFTER_S, namespace, pod))

    def tidy(self) -> None:
        """Drop the series of pods that are gone for long enough."""
        now = self._clock()
        while self._gone and self._gone[0][0] <= now:
            _, namespace, pod = self._gone.pop(0)
            for one in self.counted:
                one.forget_pod(namespace, pod)
