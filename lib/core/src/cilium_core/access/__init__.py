"""Who may see which flows: clients limited to namespaces.

A file of rules gives the names in clients' certificates namespaces (`rules`). `Access` looks them
up for each call of a server, and ends calls whose limits have changed (`guarding`). What a limited
client is shown is decided by `Limits`, which rewrites the filters of its requests (`limits`). All
of it is the same in hubble-server and hubble-relay.
"""

from __future__ import annotations

from cilium_core.access.guarding import Access
from cilium_core.access.limits import METADATA_KEY, Limits
from cilium_core.access.rules import Client, Rules, RulesError, parse_rules

__all__ = ["METADATA_KEY", "Access", "Client", "Limits", "Rules", "RulesError", "parse_rules"]
