"""Whatever services do, the maps say what they should, and nothing is left behind."""

from __future__ import annotations

import os

import pytest

from tests.needing import need

STEPS = 500
"""Of each machine; `make fuzz` plays ten thousand."""


@pytest.mark.parametrize("name", ["FrontendMachine", "ObjectMachine"])
def test_the_maps_follow_every_change_and_leak_nothing(name: str) -> None:
    need("" if os.geteuid() == 0 else "maps of the kernel need root")
    from tests.fuzz import service_states

    assert service_states.play_machine(getattr(service_states, name), STEPS) >= STEPS
