from __future__ import annotations

import pytest
from cilium_core.telemetry import Registry, counter, gauge, histogram


def test_a_histogram_is_cumulative() -> None:
    registry = Registry()
    seconds = histogram("t_seconds", "Time.", "kind", buckets=(0.1, 1), registry=registry)
    for value in (0.05, 0.1, 0.5, 7):
        seconds.observe(value, "a")
    assert registry.exposition().splitlines() == [
        "# HELP t_seconds Time.",
        "# TYPE t_seconds histogram",
        't_seconds_bucket{kind="a",le="0.1"} 2',
        't_seconds_bucket{kind="a",le="1"} 3',
        't_seconds_bucket{kind="a",le="+Inf"} 4',
        't_seconds_sum{kind="a"} 7.65',
        't_seconds_count{kind="a"} 4',
    ]


def test_gauges_are_refreshed_before_each_exposition() -> None:
    registry = Registry()
    nodes = gauge("nodes", "Nodes.", registry=registry)
    registry.on_collect(lambda: nodes.set(nodes.value() + 1))
    assert "nodes 1\n" in registry.exposition()
    assert "nodes 2\n" in registry.exposition()


def test_label_values_must_fit_the_declared_names() -> None:
    drops = counter("drops_total", "Drops.", "reason", registry=Registry())
    with pytest.raises(ValueError, match="reason"):
        drops.add(1)


def test_a_name_is_registered_once() -> None:
    registry = Registry()
    counter("x_total", "X.", registry=registry)
    with pytest.raises(ValueError, match="exists already"):
        gauge("x_total", "X.", registry=registry)
