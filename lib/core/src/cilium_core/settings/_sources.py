"""Reading settings from flags, environment and the config directory.

The directory looks like a mounted ConfigMap: one file per key, content = value; names that begin
with a dot are ignored. A key that no field has is reported and otherwise ignored, because the same
directory serves several programs; a flag that no field has is an error.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cilium_core.settings._fields import Field, fields_of
from cilium_core.settings._help import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Model = TypeVar("Model")

_BOOLEAN_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings, as told to the user."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class SettingsError(Exception):
    """The settings cannot be used; `problems` says why, one by one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Model]):
    """Settings with where each value came from."""

    value: Model
    sources: Mapping[str, str]
    """Key to `flag`, `environment CILIUM_X`, a file's path, or `default`."""
    warnings: tuple[str, ...]
    """What was ignored, for the log once it is set up."""

    def effective(self) -> dict[str, str]:
        """Key to value as text, for logs and status reports."""
        return {
            field.key: field.codec.show(getattr(self.value, field.name))
            for field in fields_of(type(self.value))
        }


@dataclass(slots=True)
class _CommandLine:
    values: dict[str, list[str]]
    config_dir: str | None = None
    asked: str = ""


def load(
    model: type[Model],
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    prefix: str = "CILIUM_",
    shared_directory: bool = False,
) -> Loaded[Model]:
    """Read the settings of `model`.

    `argv` is without the program's name. With `shared_directory`, keys of the directory that
    belong to other programs are skipped silently and only likely misspellings are reported.
    A model may have a method `check()` that yields Problems between fields.
    Raises SettingsError with everything that is wrong.
    """
    fields = fields_of(model)
    line, problems = _parse_command_line(fields, argv)
    config_dir = line.config_dir or environ.get(prefix + "CONFIG_DIR", "")
    files, warnings = _read_directory(fields, config_dir, problems, strict=not shared_directory)

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in fields:
        variable = prefix + field.key.upper().replace("-", "_").replace(".", "_")
        if field.key in line.values:
            text, source = ",".join(line.values[field.key]), "flag"
        elif variable in environ:
            text, source = environ[variable], f"environment {variable}"
        elif field.key in files:
            text, source = files[field.key], str(Path(config_dir) / field.key)
        else:
            sources[field.key] = "default"
            continue
        sources[field.key] = source
        try:
            values[field.name] = field.parse(text.strip())
        except ValueError as error:
            problems.append(Problem(field.key, f"expected {error}, got {text!r} (from {source})"))
    if problems:
        raise SettingsError(problems)
    value = model(**values)
    check = getattr(value, "check", None)
    if check is not None and (found := tuple(check())):
        raise SettingsError(found)
    return Loaded(value, sources, tuple(warnings))


def load_or_exit(
    model: type[Model],
    *,
    program: str,
    about: str,
    version: str | Callable[[], str] = "",
    prefix: str = "CILIUM_",
    shared_directory: bool = False,
    argv: Sequence[str] | None = None,
) -> Loaded[Model]:
    """`load` for a program's first line: answers --help, --version and --print-config, and exits.

    A `version` that costs time to find is a function, called for --version only. Exit code 0 after
    such an answer, 2 when the settings are wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    asked = _parse_command_line(fields_of(model), argv)[0].asked
    if asked == "help":
        sys.stdout.write(describe(model, program=program, about=about, prefix=prefix))
        raise SystemExit(0)
    if asked == "version":
        sys.stdout.write(f"{program} {version if isinstance(version, str) else version()}\n")
        raise SystemExit(0)
    try:
        loaded = load(model, argv, os.environ, prefix=prefix, shared_directory=shared_directory)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{program}: {problem}\n")
        sys.stderr.write(f"{program}: `{program} --help` explains every setting\n")
        raise SystemExit(2) from None
    if asked == "print-config":
        for key, text in sorted(loaded.effective().items()):
            sys.stdout.write(f"{key} = {text}  # {loaded.sources[key]}\n")
        raise SystemExit(0)
    return loaded


def _parse_command_line(
    fields: Iterable[Field], argv: Sequence[str]
) -> tuple[_CommandLine, list[Problem]]:
    by_key = {field.key: field for field in fields}
    line = _CommandLine(values={})
    problems: list[Problem] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            problems.append(Problem(word, "expected a flag such as --key value"))
            continue
        key, sign, text = word[2:].partition("=")
        if key in ("help", "version", "print-config"):
            line.asked = line.asked or key
            continue
        field = by_key.get(key)
        if field is None and key != "config-dir":
            problems.append(Problem(f"--{key}", f"no such flag{_suggestion(key, by_key)}"))
            if not sign and words and not words[0].startswith("--"):
                words.pop(0)
            continue
        if not sign:
            if field is not None and isinstance(field.default, bool):
                bare = not words or words[0].lower() not in _BOOLEAN_WORDS
                text = "true" if bare else words.pop(0)
            elif words and not words[0].startswith("--"):
                text = words.pop(0)
            else:
                problems.append(Problem(f"--{key}", f"needs a value: --{key} VALUE"))
                continue
        if field is None:
            line.config_dir = text
        elif field.codec.many:
            line.values.setdefault(key, []).append(text)
        else:
            line.values[key] = [text]
    return line, problems


def _read_directory(
    fields: Iterable[Field], directory: str, problems: list[Problem], *, strict: bool
) -> tuple[dict[str, str], list[str]]:
    if not directory:
        return {}, []
    path = Path(directory)
    if not path.is_dir():
        problems.append(Problem("config-dir", f"{directory!r} is not a directory; create it"))
        return {}, []
    known = {field.key for field in fields}
    files: dict[str, str] = {}
    warnings: list[str] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or not entry.is_file():
            continue
        if entry.name not in known:
            hint = _suggestion(entry.name, known)
            if strict or hint:
                warnings.append(f"{entry}: no such setting, ignored{hint}")
            continue
        try:
            if entry.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError("the file is larger than 1 MiB")
            files[entry.name] = entry.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            problems.append(Problem(entry.name, f"cannot read {entry}: {error}"))
    return files, warnings


def _suggestion(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""
