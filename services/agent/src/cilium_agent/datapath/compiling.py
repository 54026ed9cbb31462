"""Compiled programs, from the sources or from the cache on disk.

The programs name maps by index, so their instructions depend on the sources, the flags, the
compiler and the kernel's headers alone: a hash over these is the name of a cache file that all
agents of a machine share. A file lock makes parallel agents compile once; files appear by rename,
carry a checksum, and a damaged one is compiled anew.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.errors import CompileError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = structlog.get_logger(__name__)

_FORMAT = 1
_FLAGS = ("-O2", "-Wno-everything")
_TYPES = {
    "kernel_drops": "RAW_TRACEPOINT",
    "sock": "CGROUP_SOCK_ADDR",
    "sock_bind": "CGROUP_SOCK",
    "xdp": "XDP",
}
"""Types of the programs of a C file by its name; others are of tc."""
_COMPILER = Path(__file__).with_name("_compiler.py")
_TIMEOUT_S = 600.0
_VERSIONS_KEPT = 8
_NAME_IN_MESSAGES = "/virtual/main.c"
"""What BCC calls every file that it compiles."""


@dataclass(frozen=True, slots=True)
class Template:
    """The compiled functions of one C file."""

    file: str
    key: str
    """Hash of everything the instructions depend on."""
    type: int
    """enum bpf_prog_type of its programs."""
    functions: dict[str, bytes]
    """Name to instructions."""


def compile_all(folder: Path, cache: Path) -> list[Template]:
    """Return every C file of the source folder compiled, from the cache where possible.

    Raises SourceError when the sources cannot be read and CompileError when one is refused.
    """
    files = sorted(folder.glob("*.c"))
    if not files:
        raise SourceError(f"{folder} has no C file")
    shared = _digest_of_headers(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda file: _template(folder, file, shared, cache), files))


def program_type(file: Path) -> int:
    """Type of a C file's programs, which its name tells."""
    return syscalls.PROG_TYPES[_TYPES.get(file.stem, "SCHED_CLS")]


def _template(folder: Path, file: Path, shared: bytes, cache: Path) -> Template:
    digest = hashlib.sha256(shared + file.name.encode() + b"\0" + file.read_bytes())
    key = digest.hexdigest()[:32]
    kind = program_type(file)
    path = cache / f"{file.stem}-{key}.json"
    if (functions := _read(path)) is None:
        with _locked(cache / f"{file.stem}-{key}.lock"):
            if (functions := _read(path)) is None:
                functions = _compile(folder, file)
                _write(path, functions)
                _prune(cache, file.stem)
    return Template(file.name, key, kind, functions)


def _digest_of_headers(folder: Path) -> bytes:
    digest = hashlib.sha256()
    about = (_FORMAT, _FLAGS, _bcc_version(), os.uname().release, os.uname().machine)
    digest.update(repr(about).encode())
    for header in sorted(folder.rglob("*.h")):
        digest.update(f"{header.relative_to(folder)}\0".encode() + header.read_bytes() + b"\0")
    return digest.digest()


def _bcc_version() -> str:
    """Version of BCC without the cost of importing it."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        raise SourceError("bcc is not installed; on Debian: apt-get install python3-bpfcc")
    return Path(found.origin).with_name("version.py").read_text(encoding="utf-8")


def _compile(folder: Path, file: Path) -> dict[str, bytes]:
    started = time.monotonic()
    command = [sys.executable, str(_COMPILER), str(file), f"-I{folder}", f"-I{folder / 'lib'}"]
    try:
        done = subprocess.run(
            [*command, *_FLAGS], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(file.name, f"no result within {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        messages = done.stderr.replace(_NAME_IN_MESSAGES, file.name)
        raise CompileError(file.name, messages or f"exit code {done.returncode}")
    took = time.monotonic() - started
    _log.info("program compiled", file=file.name, took_s=round(took, 2))
    return {
        name: base64.b64decode(code)
        for name, code in json.loads(done.stdout[done.stdout.index("{") :]).items()
    }


def _read(path: Path) -> dict[str, bytes] | None:
    """Functions of a cache file, None when there is none or it is damaged."""
    try:
        checksum, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        _log.warning("compiled program is damaged, compiling anew", path=str(path))
        return None
    os.utime(path)  # in use, see _prune
    return {name: base64.b64decode(code) for name, code in json.loads(body).items()}


def _prune(cache: Path, stem: str) -> None:
    """Keep the versions of a program that were used last."""
    kept = sorted(cache.glob(f"{stem}-*.json"), key=_age, reverse=True)
    for path in kept[_VERSIONS_KEPT:]:
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another agent has removed it
        return 0.0


def _write(path: Path, functions: dict[str, bytes]) -> None:
    body = json.dumps(
        {name: base64.b64encode(code).decode() for name, code in functions.items()}
    ).encode()
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with fresh.open("wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads out; the kernel lets go when this process dies."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
