"""Oracle, resolver and kernel give every packet the same verdict, for the same reason."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.bpf.conftest import CACHE, why_not
from tests.needing import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Plane

ROUNDS = 13
"""Of some 240 packets each."""


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    need(why_not())
    from tests.bpf.harness import Plane
    from tests.fuzz.rounds import SIZES

    made = Plane(CACHE, sizes=SIZES)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(1, ROUNDS + 1))
def test_oracle_resolver_and_kernel_agree(plane: Plane, seed: int) -> None:
    from tests.fuzz.rounds import play, shrunk

    assert [str(shrunk(plane, finding)) for finding in play(plane, seed, Counter())] == []
