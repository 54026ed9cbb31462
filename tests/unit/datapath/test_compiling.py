"""Compiled once for all agents of a machine, and never trusted blindly."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import __main__ as ahead
from cilium_agent.datapath import compiling, specs
from cilium_agent.datapath.errors import CompileError, SourceError

if TYPE_CHECKING:
    from pathlib import Path

_TINY = "#include <uapi/linux/bpf.h>\nint cil_tiny(struct __sk_buff *skb) {{ return {}; }}\n"


@pytest.fixture
def folder(tmp_path: Path, compiler: None) -> Path:
    (tmp_path / "bpf" / "lib").mkdir(parents=True)
    (tmp_path / "bpf" / "tiny.c").write_text(_TINY.format(7))
    return tmp_path / "bpf"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were compiled, in order."""
    compiled: list[str] = []
    real = compiling._compile

    def counted(folder: Path, file: Path) -> dict[str, bytes]:
        compiled.append(file.name)
        return real(folder, file)

    monkeypatch.setattr(compiling, "_compile", counted)
    return compiled


def test_the_second_agent_compiles_nothing(
    folder: Path, tmp_path: Path, compilations: list[str]
) -> None:
    first = compiling.compile_all(folder, tmp_path / "cache")
    second = compiling.compile_all(folder, tmp_path / "cache")

    assert first == second
    assert list(first[0].functions) == ["cil_tiny"]
    assert compilations == ["tiny.c"]


def test_agents_that_start_together_compile_once(
    folder: Path, tmp_path: Path, compilations: list[str]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda _: compiling.compile_all(folder, tmp_path / "cache"), range(4))
        )

    assert all(each == found[0] for each in found)
    assert compilations == ["tiny.c"]


def test_a_changed_header_is_a_changed_program(
    folder: Path, tmp_path: Path, compilations: list[str]
) -> None:
    (before,) = compiling.compile_all(folder, tmp_path / "cache")
    (folder / "lib" / "new.h").write_text("/* new */\n")
    (after,) = compiling.compile_all(folder, tmp_path / "cache")

    assert before.key != after.key
    assert len(compilations) == 2


def test_only_the_changed_file_is_compiled(
    folder: Path, tmp_path: Path, compilations: list[str]
) -> None:
    shutil.copy(folder / "tiny.c", folder / "xdp.c")
    compiling.compile_all(folder, tmp_path / "cache")
    (folder / "tiny.c").write_text(_TINY.format(8))

    compiling.compile_all(folder, tmp_path / "cache")

    assert sorted(compilations) == ["tiny.c", "tiny.c", "xdp.c"]


def test_a_damaged_cache_file_is_compiled_anew(
    folder: Path, tmp_path: Path, compilations: list[str]
) -> None:
    (good,) = compiling.compile_all(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.json")
    file.write_bytes(file.read_bytes()[:-5])

    (again,) = compiling.compile_all(folder, tmp_path / "cache")

    assert again == good
    assert len(compilations) == 2


def test_an_error_shows_the_compilers_message(folder: Path, tmp_path: Path) -> None:
    (folder / "tiny.c").write_text("int cil_tiny(struct __sk_buff *skb) { return nonsense; }\n")

    with pytest.raises(CompileError, match=r"tiny.c does not compile:(.|\n)*nonsense"):
        compiling.compile_all(folder, tmp_path / "cache")


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no C file"):
        compiling.compile_all(tmp_path, tmp_path / "cache")


def test_the_cache_holds_no_half_written_file(folder: Path, tmp_path: Path) -> None:
    compiling.compile_all(folder, tmp_path / "cache")

    suffixes = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert suffixes == {".json", ".lock"}


def test_versions_that_nobody_uses_any_more_are_removed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for age in range(20):
        old = cache / f"tiny-{age}.json"
        old.write_text("")
        os.utime(old, (age, age))

    compiling.compile_all(folder, cache)

    assert len(list(cache.glob("tiny-*.json"))) == compiling._VERSIONS_KEPT
    assert not (cache / "tiny-0.json").exists()
    assert (cache / "tiny-19.json").exists()


def test_the_command_compiles_ahead(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(specs, "bpf_folder", lambda: folder)
    monkeypatch.setattr("sys.argv", ["compile", str(tmp_path / "ahead")])

    assert ahead.main() == 0
    assert len(list((tmp_path / "ahead").glob("*.json"))) == 1

    (folder / "tiny.c").write_text("nonsense")
    assert ahead.main() == 1
    assert "tiny.c does not compile" in capsys.readouterr().err
