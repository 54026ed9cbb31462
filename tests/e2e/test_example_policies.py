"""Real policy files mean what they are known to mean, packet by packet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.driving import Cluster
from tests.e2e.meanings import Case, Stage, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.running import Lab

TABLE = read(Path(__file__).with_name("example_policies.yaml"))
FOLDER = Path(
    os.environ.get("CILIUM_EXAMPLE_POLICIES")
    or Path(__file__).resolve().parents[3] / "shared/data/example-policies"
)

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"no policy files in {FOLDER}; CILIUM_EXAMPLE_POLICIES names another folder",
)


@pytest.fixture(scope="module")
def stage(start_lab: Callable[[int], Lab]) -> Iterator[Stage]:
    with Cluster(start_lab(2), 2) as cluster:
        made = Stage(cluster, TABLE, FOLDER)
        yield made
        made.close()


@pytest.mark.parametrize("case", TABLE.cases, ids=lambda case: case.name)
def test_a_policy_file_means_what_it_is_known_to_mean(stage: Stage, case: Case) -> None:
    if case.skip:
        pytest.skip(case.skip)

    assert stage.wrong(case) == []


def test_every_file_is_in_the_table() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}

    assert files == {file for case in TABLE.cases for file in case.files}
