"""Policies mean what they say, from labels to requests: two tables of cases, in real traffic.

policy_features.yaml has policies of our own, example_policies.yaml says what real policy files
mean, which are looked for in CILIUM_EXAMPLE_POLICIES, or beside the project.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.driving import Cluster
from tests.e2e.meanings import Case, Stage, Table, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.running import Lab

FEATURES = read(Path(__file__).with_name("policy_features.yaml"))
EXAMPLES = read(Path(__file__).with_name("example_policies.yaml"))
FOLDER = Path(
    os.environ.get("CILIUM_EXAMPLE_POLICIES")
    or Path(__file__).resolve().parents[3] / "shared/data/example-policies"
)

no_examples = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no policy files in {FOLDER} (CILIUM_EXAMPLE_POLICIES)"
)


@pytest.fixture(scope="module")
def stage(start_lab: Callable[..., Lab]) -> Iterator[Stage]:
    table = FEATURES
    if FOLDER.is_dir():
        table = Table(
            (*FEATURES.cases, *EXAMPLES.cases),
            (*FEATURES.world, *EXAMPLES.world),
            FEATURES.zones | EXAMPLES.zones,
        )
    with Cluster(start_lab(2), 2) as cluster:
        made = Stage(cluster, table, FOLDER)
        yield made
        made.close()


@pytest.mark.parametrize("case", FEATURES.cases, ids=lambda case: case.name)
def test_a_policy_means_what_it_says(stage: Stage, case: Case) -> None:
    assert stage.wrong(case) == []


@no_examples
@pytest.mark.parametrize("case", EXAMPLES.cases, ids=lambda case: case.name)
def test_a_policy_file_means_what_it_is_known_to_mean(stage: Stage, case: Case) -> None:
    if case.skip:
        pytest.skip(case.skip)

    assert stage.wrong(case) == []


@no_examples
def test_every_file_is_in_the_table() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}

    assert files == {file for case in EXAMPLES.cases for file in case.files}
