"""`cilium policy validate`: what it prints, and the exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from cilium_cli.commands.policies import policy
from cilium_cli.errors import InputError
from click.testing import CliRunner, Result

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {}
"""
WRONG = POLICY.replace("podSelector", "podselector")
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n"


def validate(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(policy, ["validate", *arguments], input=text)


def test_a_valid_file_is_told_and_exits_with_0(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"{POLICY}---\n{POD}")

    done = validate(str(file))

    assert done.exit_code == 0
    assert done.output.splitlines() == [
        f"{file}:1: valid: NetworkPolicy default/closed",
        f"{file}:7: skipped: Pod web (not checked)",
        "1 valid, 1 skipped",
    ]


def test_a_wrong_field_is_told_with_its_line_and_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"{POLICY}---\n{WRONG}")

    done = validate(str(tmp_path))

    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 1
    assert f"{file}:11: error: NetworkPolicy default/closed: spec.podselector:" in done.output


def test_standard_input_is_a_file_called_dash() -> None:
    done = validate("-", text=POLICY)

    assert done.exit_code == 0
    assert done.output.startswith("stdin:1: valid:")


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_objects_and_a_summary(form: str, load: object) -> None:
    done = validate("-", "-o", form, text=WRONG)

    document = load(done.output)  # type: ignore[operator]
    (found,) = document["objects"]
    assert (found["file"], found["line"], found["outcome"]) == ("stdin", 1, "invalid")
    assert found["errors"][0] == {
        "line": 5,
        "field": "spec.podselector",
        "message": "unknown field",
    }
    assert document["summary"]["invalid"] == 1


@pytest.mark.parametrize("arguments", [[], ["-o", "xml", "-"], ["--nosuch"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert validate(*arguments).exit_code == 2


def test_an_empty_input_is_an_error() -> None:
    assert isinstance(validate("-").exception, InputError)


NODES = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nodes}
spec:
  endpointSelector: {}
  comment: why
  ingress:
  - fromNodes: [{}]
"""


def test_the_clusters_options_can_be_given() -> None:
    arguments = ["-", "--lenient", "--set", "enable-node-selector-labels=true"]
    done = validate(*arguments, text=NODES)

    assert done.exit_code == 0
    assert "stdin:6: warning: CiliumNetworkPolicy default/nodes: spec.comment" in done.output
    refused = validate("-", text=NODES)
    assert isinstance(refused.exception, InputError)
    assert "spec.comment: unknown field" in refused.output


def test_an_option_that_is_none_is_a_wrong_command_line() -> None:
    assert validate("-", "--set", "moon=true", text=POLICY).exit_code == 2
