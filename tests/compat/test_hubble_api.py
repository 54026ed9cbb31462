"""The four public Hubble packages are wire-compatible: every name, number and type is the API's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flow import flow_pb2
from observer import observer_pb2
from peer import peer_pb2
from relay import relay_pb2

from tests.compat.descriptors import facts

HERE = Path(__file__).parent
REFERENCE = HERE.parents[2] / "shared" / "reference" / "hubble-api.md"
FILES = {
    "flow": flow_pb2.DESCRIPTOR,
    "observer": observer_pb2.DESCRIPTOR,
    "relay": relay_pb2.DESCRIPTOR,
    "peer": peer_pb2.DESCRIPTOR,
}
PUBLIC = (HERE / "hubble_api.txt").read_text().splitlines()


@pytest.mark.parametrize("package", FILES)
def test_descriptors_hold_exactly_the_public_api(package: str) -> None:
    expected = {line for line in PUBLIC if re.match(rf"\w+ {package}\.", line)}

    assert expected
    assert expected == facts(FILES[package])


def test_flow_declares_fields_in_the_order_clients_print_them() -> None:
    order = [field.name for field in flow_pb2.Flow.DESCRIPTOR.fields]

    assert order[:7] == [
        "time", "uuid", "emitter", "verdict", "drop_reason", "auth_type", "ethernet",
    ]  # fmt: skip
    assert order.index("Summary") > order.index("is_reply")


def test_import_paths_are_those_reflection_clients_ask_for() -> None:
    assert {name: file.name for name, file in FILES.items()} == {
        name: f"{name}/{name}.proto" for name in FILES
    }


@pytest.mark.parametrize("package", FILES)
def test_descriptors_agree_with_the_written_reference(package: str) -> None:
    if not REFERENCE.exists():
        pytest.skip(f"the written reference is not here: {REFERENCE.name}")
    mentioned = reference_facts(REFERENCE.read_text(), package)

    assert mentioned
    assert mentioned == {f for f in facts(FILES[package]) if not f.startswith(("message ", "rpc "))}


def reference_facts(text: str, package: str) -> set[str]:
    """Fields and enum values the reference's chapter on a package names, as `facts` writes them."""
    chapter = next(part for part in text.split("\n## ") if f"package {package}\n" in part)
    found: set[str] = set()
    owner, kind = "", ""
    for line in chapter.splitlines():
        if match := re.match(r"(?:### |- )(message|enum) ([\w.]+)", line):
            kind, owner = match.groups()
        elif line.startswith("### "):
            owner = ""
        if not owner:
            continue
        if kind == "enum":
            for number, name, old in re.findall(r"`(\d+) (\w+)(!?)`", line):
                found.add(f"value {owner}.{name} = {number}{' deprecated' if old else ''}")
            continue
        for number, name, rest in re.findall(r"`(\d+) (\S+) ([^`]+)`", line):
            words = rest.rstrip("!").split()
            if rest.endswith("!"):
                words.append("deprecated")
            found.add(f"field {owner}.{name} = {number} {' '.join(words)}")
    return found
