"""What names stand for: addresses learned from answers, and the labels that they get by policy."""

from cilium_agent.fqdn.caches import Lookup
from cilium_agent.fqdn.names import NameManager, NameOptions
from cilium_agent.fqdn.storing import restored_labels

__all__ = ["Lookup", "NameManager", "NameOptions", "restored_labels"]
