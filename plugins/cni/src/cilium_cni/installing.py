# SPDX-License-Identifier: Apache-2.0
"""Puts the plugin where a runtime looks for it.

The launcher skips `site` and everything it imports (`-I -S`), which halves the start: the plugin
needs nothing but the standard library and this package's own folder.
"""

import sys
from pathlib import Path

NAME = "cilium-cni"


def install(directory: str | Path, python: str = sys.executable) -> Path:
    """Write the launcher `cilium-cni` into the directory and return its path."""
    packages = Path(__file__).resolve().parent.parent
    directory = Path(directory)
    launcher = directory / NAME
    draft = directory / f".{NAME}.new"
    directory.mkdir(parents=True, exist_ok=True)
    draft.write_text(
        f"#!{python} -IS\n"
        "import sys\n"
        f"sys.path.insert(0, {str(packages)!r})\n"
        "from cilium_cni.__main__ import main\n"
        "sys.exit(main())\n"
    )
    draft.chmod(0o755)
    draft.rename(launcher)
    return launcher
