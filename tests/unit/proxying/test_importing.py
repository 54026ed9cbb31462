"""A proxy that died is back as soon as its modules are imported, so they are few."""

from __future__ import annotations

import subprocess
import sys

import cilium_core.policy
import pytest
from cilium_core.policy import exports


@pytest.mark.parametrize("program", ["dns_proxy", "kafka_proxy"])
def test_a_proxy_starts_without_the_policy_engine_and_grpc(program: str) -> None:
    code = f"import sys, {program}.__main__; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "grpc", "cilium_core.policy.engines"} & set(found.stdout.split())


def test_the_package_has_every_name_of_its_exports() -> None:
    for name in exports.__all__:
        assert getattr(cilium_core.policy, name) is getattr(exports, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cilium_core.policy.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["engines", "exports", "parsing", "explaining"])
def test_any_module_of_the_policy_engine_can_be_the_first_that_is_imported(first: str) -> None:
    subprocess.run([sys.executable, "-c", f"import cilium_core.policy.{first}"], check=True)
