"""What policies can say, from labels to requests, is what packets and requests meet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.driving import Cluster
from tests.e2e.meanings import Case, Stage, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.running import Lab

TABLE = read(Path(__file__).with_name("policy_features.yaml"))


@pytest.fixture(scope="module")
def stage(start_lab: Callable[..., Lab]) -> Iterator[Stage]:
    with Cluster(start_lab(2), 2) as cluster:
        made = Stage(cluster, TABLE)
        yield made
        made.close()


@pytest.mark.parametrize("case", TABLE.cases, ids=lambda case: case.name)
def test_a_policy_means_what_it_says(stage: Stage, case: Case) -> None:
    assert stage.wrong(case) == []
