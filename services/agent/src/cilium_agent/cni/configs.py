"""The network configuration that tells the container runtime to call the plugin.

It is written when the agent can serve pods, and not before: its presence is what makes a runtime
report the node's network as ready.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cilium_core.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "05-cilium.conflist"


def write(directory: Path, state_dir: Path, *, debug: bool) -> Path:
    """Write the configuration in one step, readable by its owner only; returns the file."""
    plugin = {
        "type": "cilium-cni",
        "state-dir": str(state_dir),
        "enable-debug": debug,
        "log-file": str(state_dir / "cilium-cni.log"),
    }
    document = {"cniVersion": "1.1.0", "name": "cilium", "plugins": [plugin]}
    path = directory / FILE_NAME
    write_atomic(path, json.dumps(document, indent=2).encode() + b"\n")
    return path
