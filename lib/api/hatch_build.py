"""Generates the gRPC stubs when cilium-api is built, as a wheel or in place.

The path of a proto is the Python path of its stub, so no import needs patching. What is
generated lies below src/ and is never committed.
"""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateStubs(BuildHookInterface):
    """Runs protoc over proto/ into src/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Replace src/ by fresh stubs. Raises RuntimeError when protoc refuses a file."""
        from grpc_tools import protoc

        proto = Path(self.root, "..", "..", "proto").resolve()
        src, out = Path(self.root, "src"), Path(self.root, "src.new")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        sources = sorted(str(path) for path in proto.rglob("*.proto"))
        arguments = [
            "protoc",
            f"-I{proto}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *sources,
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc refused a file below {proto}; its message is above")
        for stub in out.rglob("*_pb2.py"):
            (stub.parent / "py.typed").touch()
            for package in (stub.parent, *stub.parent.parents):
                if package == out:
                    break
                (package / "__init__.py").touch()
        # programs that run meanwhile find the old stubs or the new ones
        shutil.rmtree(src, ignore_errors=True)
        out.rename(src)
