"""Flow filters: compiled once a request, evaluated on columns, with Hubble's semantics.

What a filter means is defined once, in `cilium_core.flow_filters`, which tests single messages and
says what is wrong with a filter. Here the same filters become masks: fields that depend on interned
rows ask that very code once for each row, the others are written as arithmetic on columns.
"""

from __future__ import annotations

from hubble_server.filters.compiling import (
    FilterContext,
    Filters,
    are_much_work,
    compile_filters,
)

__all__ = ["FilterContext", "Filters", "are_much_work", "compile_filters"]
