"""What is the same for every flow of this server: the node, and who observed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

VERSION = metadata.version("hubble-server")
"""Version of this server, without a leading v."""

EMITTER_NAME = "Hubble"
DEFAULT_CLUSTER = "default"


def qualified(cluster: str, node: str) -> str:
    """Node name as flows and peers show it: with the cluster unless that is the default one."""
    return node if cluster in ("", DEFAULT_CLUSTER) else f"{cluster}/{node}"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The node of this server. A change makes a new object."""

    name: str
    cluster: str = DEFAULT_CLUSTER
    labels: tuple[str, ...] = ()
    """`key=value`, sorted."""
    addresses: tuple[str, ...] = ()

    @property
    def qualified_name(self) -> str:
        """Name as flows show it."""
        return qualified(self.cluster, self.name)

    @property
    def ipv4(self) -> str:
        """First IPv4 address, or nothing."""
        return next((address for address in self.addresses if ":" not in address), "")
