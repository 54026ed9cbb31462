"""What one agent makes is what the next one makes: Envoy is adopted and told nothing new."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import hashlib
from pathlib import Path
from cilium_agent.proxies import encoding
from cilium_agent.proxies.envoy import bootstrap
from cilium_agent.proxies.envoy.options import EnvoyOptions
from cilium_agent.proxies.envoy.resources import Builder, version
from cilium_agent.proxies.secrets import Secrets
from cilium_core.policy.l7 import *

names = frozenset("abcdefgh")
headers = (HeaderMatch("x", "1", mismatch=Mismatch.ADD), HeaderMatch("y"))
context = TlsContext(SecretRef("default", "pair"), trusted_ca="ca.crt")
redirects = [
    Redirect(True, L7Kind.HTTP, http=(HttpRule("/a.*", "GET", headers=headers),)),
    Redirect(False, L7Kind.HTTP, http=(HttpRule("/a|/b"),), terminating=context,
             originating=context, server_names=names),
    Redirect(False, L7Kind.TLS, server_names=names, audit=True),
    Redirect(False, L7Kind.KAFKA, kafka=(KafkaRule(frozenset(range(9)), topic="t"),)),
]
content = bootstrap.bootstrap(Path("/a"), Path("/b"), EnvoyOptions())
made = Builder(Secrets(), EnvoyOptions()).build(
    {one: 10000 + number for number, one in enumerate(redirects[:3])}
)
print(hashlib.sha256(content).hexdigest())
print(*(version(made.by_type[name]) for name in sorted(made.by_type)))
print(*map(encoding.key, redirects))
"""


def test_configuration_is_the_same_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(outputs) == 1
