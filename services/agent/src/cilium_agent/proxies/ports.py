"""Which port enforces which redirect, across restarts of the agent.

A port belongs to one redirect at a time: two different ones never share a port, not even one after
the other within the grace period, so that a packet on its way to a port is never judged by rules
that it was not meant for. A redirect out of use keeps its port for a while, since policies often
come back; what was on disk at start counts as in use until the agent has computed its policies.

Used from the event loop. Calls block on the disk, briefly.
"""

from __future__ import annotations

import json
import random
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError
from cilium_core.files import write_atomic
from cilium_core.policy.l7 import L7Kind, Redirect
from cilium_core.telemetry import get_logger

from cilium_agent.proxies import encoding
from cilium_agent.proxies.errors import PortsExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

log = get_logger()

GRACE_S = 300.0
"""How long a redirect that nothing uses keeps its port."""

VERSION = 1


@dataclass(slots=True)
class _Entry:
    port: int
    unused_since: float | None = None
    """Monotonic seconds; None while in use."""

    claimed: bool = True
    """False for what was on disk and nobody asked for since."""


def is_free(port: int, *, ipv6: bool = True) -> bool:
    """Whether nobody else listens on the port of a loopback address, by TCP or UDP."""
    families = [(socket.AF_INET, "127.0.0.1")] + ([(socket.AF_INET6, "::1")] if ipv6 else [])
    for family, address in families:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                try:
                    probe.bind((address, port))
                except OSError:
                    return False
    return True


class PortTable:
    """Redirects and their ports, kept in one file."""

    def __init__(
        self,
        path: Path,
        ports: range = range(10000, 20001),
        *,
        free: Callable[[int], bool] = is_free,
        clock: Callable[[], float] = time.monotonic,
        grace_s: float = GRACE_S,
    ) -> None:
        self._path = path
        self._ports = ports
        self._free = free
        self._clock = clock
        self._grace_s = grace_s
        self._entries: dict[Redirect, _Entry] = {}
        self._unsaved = False

    @property
    def range(self) -> range:
        """The ports that may be given out."""
        return self._ports

    def load(self) -> None:
        """Take up what the file says; a file that makes no sense is reported and ignored."""
        try:
            document = json.loads(self._path.read_bytes())
            entries = {
                encoding.decode(item["redirect"]): _Entry(int(item["port"]), claimed=False)
                for item in document["ports"]
            }
            ports = [entry.port for entry in entries.values()]
            if len(set(ports)) != len(ports) or not all(port in self._ports for port in ports):
                raise ValueError("ports are taken twice or lie outside of proxy-port-range")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, InvalidError) as error:
            log.warning("proxy ports ignored", file=str(self._path), error=str(error))
            return
        self._entries = entries

    def claim(self, redirect: Redirect) -> int:
        """The port of a redirect, which is in use from now on; `save` keeps it.

        Raises `PortsExhaustedError`.
        """
        entry = self._entries.get(redirect)
        if entry is None:
            entry = self._entries[redirect] = _Entry(self._pick())
            self._unsaved = True
        entry.claimed, entry.unused_since = True, None
        return entry.port

    def move(self, redirect: Redirect) -> int:
        """Give a redirect another port, because its own is taken by a stranger; `save` keeps it.

        Raises `PortsExhaustedError`; then it keeps the one it has.
        """
        entry = self._entries[redirect]
        entry.port = self._pick()
        self._unsaved = True
        return entry.port

    def release(self, redirects: Iterable[Redirect]) -> None:
        """Say that nothing uses these any more."""
        for redirect in redirects:
            entry = self._entries.get(redirect)
            if entry is not None and entry.unused_since is None:
                entry.unused_since = self._clock()

    def release_unclaimed(self) -> None:
        """Say that what an earlier run left and nobody claimed is out of use."""
        self.release([one for one, entry in self._entries.items() if not entry.claimed])

    def expire(self) -> list[Redirect]:
        """Forget what was out of use for the grace period, and return it; `save` keeps that."""
        limit = self._clock() - self._grace_s
        gone = [
            redirect
            for redirect, entry in self._entries.items()
            if entry.unused_since is not None and entry.unused_since <= limit
        ]
        for redirect in gone:
            del self._entries[redirect]
        self._unsaved |= bool(gone)
        return gone

    def ports(self, kinds: Collection[L7Kind] = tuple(L7Kind)) -> Mapping[Redirect, int]:
        """Every redirect of these kinds that has a port."""
        return {one: entry.port for one, entry in self._entries.items() if one.kind in kinds}

    def in_use(self, redirect: Redirect) -> bool:
        """Whether something uses the redirect, as far as is known."""
        entry = self._entries.get(redirect)
        return entry is not None and entry.unused_since is None

    def save(self) -> None:
        """Write what changed; if that fails, it is reported, and the ports hold all the same."""
        if not self._unsaved:
            return
        items = [
            {"port": entry.port, "redirect": encoding.encode(redirect)}
            for redirect, entry in sorted(self._entries.items(), key=lambda item: item[1].port)
        ]
        content = json.dumps({"version": VERSION, "ports": items}, indent=1)
        try:
            write_atomic(self._path, content.encode(), 0o600)
        except OSError as error:
            log.error("proxy ports not saved", file=str(self._path), error=str(error))
        else:
            self._unsaved = False

    def _pick(self) -> int:
        taken = {entry.port for entry in self._entries.values()}
        first = random.randrange(len(self._ports))  # noqa: S311 - spreads ports, no secret
        for offset in range(len(self._ports)):
            port = self._ports[(first + offset) % len(self._ports)]
            if port not in taken and self._free(port):
                return port
        raise PortsExhaustedError(
            f"all {len(self._ports)} ports of proxy-port-range {self._ports[0]}-{self._ports[-1]} "
            "are in use; widen the range"
        )
