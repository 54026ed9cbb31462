"""`make bench`: measure, print a table, write build/bench.json.

    python -m tests.bench [SUITE]...     see SUITES

    All by default.

The exit code is 0 when everything could be measured, whatever the figures are.
"""

from __future__ import annotations

import sys
from importlib import import_module

from tests.bench import report

SUITES = (
    "datapath",
    "flows",
    "histories",
    "cluster",
    "policies",
    "resolution",
    "maps",
    "http",
    "dns",
    "network",
    "acceleration",
    "services",
)


def main() -> int:
    """Run the suites named on the command line."""
    wanted = sys.argv[1:] or list(SUITES)
    if unknown := set(wanted) - set(SUITES):
        print(f"bench: no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
        return 2
    rows: list[report.Row] = []
    for name in wanted:
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        rows.extend(import_module(f"tests.bench.{name}").rows())
    print(report.table(rows))
    report.write(rows)
    print(f"\n{report.OUTPUT} has these rows as JSON.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
