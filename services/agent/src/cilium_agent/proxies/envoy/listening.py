"""Whether a process listens: Envoy acknowledges a listener a moment before its workers listen.

Until then the data plane finds no socket for a connection, and the client's next attempt comes a
second later.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTENING = re.compile(rb"^ *\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:0000 0A ", re.MULTILINE)


def listened_on(pid: int, *, ipv6: bool) -> set[int]:
    """TCP ports with a listener in the process's network namespace, in each family asked for.

    Empty when the process is gone. Reads the whole table of sockets, so call it in a thread.
    """
    found = []
    for name in ("tcp", "tcp6") if ipv6 else ("tcp",):
        try:
            table = Path(f"/proc/{pid}/net/{name}").read_bytes()
        except OSError:
            return set()
        found.append({int(port, 16) for port in _LISTENING.findall(table)})
    return set.intersection(*found)


def all_listened_on(pid: int, ports: Iterable[int], *, ipv6: bool) -> bool:
    """Whether there is a listener on each of some ports."""
    return set(ports) <= listened_on(pid, ipv6=ipv6)
