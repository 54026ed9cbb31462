"""Compile the data plane ahead of its first start: `python -m cilium_agent.datapath FOLDER`.

FOLDER is the agents' `template-dir`. Does nothing when everything is compiled already.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cilium_agent.datapath import specs
from cilium_agent.datapath.compiling import compile_all
from cilium_agent.datapath.errors import DatapathError
from cilium_agent.datapath.models import DatapathPaths


def main() -> int:
    """Compile into the folder of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cilium_agent.datapath", description=__doc__)
    default = DatapathPaths().template_dir
    parser.add_argument("folder", type=Path, nargs="?", default=default, help=f"default {default}")
    try:
        compile_all(specs.bpf_folder(), parser.parse_args().folder)
    except DatapathError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
