"""Real policy files are accepted, or refused for a field that is enforced later."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import yaml
from cilium_core.policy import POLICY_KINDS, UnsupportedPolicyError, parse

EXAMPLES = Path(
    os.environ.get("CILIUM_EXAMPLE_POLICIES")
    or Path(__file__).parents[4] / "shared" / "data" / "example-policies"
)
FILES = sorted(EXAMPLES.rglob("*.yaml")) if EXAMPLES.is_dir() else []


@pytest.mark.skipif(not FILES, reason=f"no example policies at {EXAMPLES}")
def test_every_example_is_read_or_refused_for_a_later_feature():
    outcomes = Counter(
        outcome(obj)
        for file in FILES
        for obj in yaml.safe_load_all(file.read_text())
        if obj["kind"] in POLICY_KINDS
    )

    assert set(outcomes) == {"read", "refused for a later feature"}
    assert outcomes["read"] >= 20


def outcome(obj: object) -> str:
    try:
        parse(obj)
    except UnsupportedPolicyError as error:
        later = all(problem.unsupported for problem in error.problems)
        return "refused for a later feature" if later else str(error)
    return "read"
