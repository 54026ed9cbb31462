"""YAML files read with the line of every field, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cilium_cli import documents
from cilium_cli.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
# a comment
kind: Pod
metadata:
  name: a
spec:
  containers:
    - name: main
      ports:
        - containerPort: 1
---
---
kind: Pod
metadata: {name: b}
"""

BOMB = "\n".join(
    ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    + [
        f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]"
        for before, name in zip("abcd", "bcde", strict=True)
    ]
)
"""Ten thousand million values in five lines."""


def test_documents_know_the_line_of_each_field() -> None:
    first, second = documents.parse(TEXT, "x.yaml")

    assert first.where() == "x.yaml:2"
    assert first.where("spec.containers[0].ports[0].containerPort") == "x.yaml:9"
    assert second.where("metadata.name") == "x.yaml:13"


def test_a_missing_field_is_placed_at_the_nearest_one_around_it() -> None:
    first, _ = documents.parse(TEXT, "x.yaml")

    assert first.where("spec.containers[0].image.tag") == "x.yaml:7"
    assert first.where("status.phase") == "x.yaml:2"


def test_items_of_a_list_are_objects_of_their_own() -> None:
    text = "kind: List\nitems:\n- kind: A\n- kind: B\n  x: 1\n"

    found = documents.parse(text, "l.yaml")

    assert [document.object["kind"] for document in found] == ["A", "B"]
    assert found[1].where("x") == "l.yaml:5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "x:1"),
        ("a: 1\nb: 2\na: 3", "x:3: key 'a' is written twice"),
        ("- 1", "x:1: expected an object, got list"),
        ("just text", "expected an object, got str"),
        ("a: &a [*a]", "x"),
        ("a: !!python/object:os.system {}", "x:1"),
        ("\x00", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("[" * 5000, "x"),
        ("a: " + "[" * 100 + "]" * 100, "levels"),
        ("? [a, b]\n: 1", "x"),
        ("kind: List\nitems: 5", "x:2: items of a List must be a list"),
        ("kind: List\nitems: [5]", "expected an object"),
        ("kind: List\nitems: [null]", "expected an object"),
        (BOMB, "more than"),
    ],
)
def test_what_is_no_list_of_objects_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        documents.parse(text, "x")

    assert words in raised.value.message
    assert raised.value.message.startswith("x")


def test_an_empty_file_holds_nothing() -> None:
    assert documents.parse("# nothing\n---\n", "x") == []


def test_folders_are_read_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: B")
    (tmp_path / "a.yml").write_text("kind: A")
    (tmp_path / "note.txt").write_text("no yaml: [")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.yaml").write_text("kind: C")

    def kinds(*, recursive: bool) -> list[str]:
        found = documents.read([str(tmp_path)], recursive=recursive)
        return [document.object["kind"] for document in found]

    assert kinds(recursive=False) == ["A", "B"]
    assert kinds(recursive=True) == ["A", "B", "C"]


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", None])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=r"x\.yaml"):
        documents.read([str(path)])
