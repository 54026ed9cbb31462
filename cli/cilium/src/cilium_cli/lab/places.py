# SPDX-License-Identifier: Apache-2.0
"""Where a command can be run in a lab: in a pod, on a node, in the fabric or in the world."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cilium_cli.errors import CommandError, NotFoundError
from cilium_cli.lab import cgroups, namespaces, runtimes
from cilium_cli.lab.layouts import parse_pod

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cilium_cli.lab.layouts import Layout


class Place(NamedTuple):
    """A namespace and the cgroup its processes belong to."""

    netns: str
    cgroup: Path

    def run(self, command: Sequence[str]) -> None:
        """Replace this process by the command, inside. Does not return."""
        cgroups.join(cgroups.create(self.cgroup))
        namespaces.enter(self.netns)
        try:
            os.execvp(command[0], list(command))  # noqa: S606 - the user's own command, no shell
        except OSError as error:
            raise CommandError(f"cannot run {command[0]!r}: {error.strerror}") from error


def find(lab: Layout, name: str, namespace: str = "default") -> Place:
    """Return the pod of that name, else the node, `fabric` or `world`; NotFoundError for none."""
    in_namespace, pod_name = parse_pod(name, namespace)
    record = lab.pod_record(in_namespace, pod_name)
    if "/" not in name and not record.exists():
        shared = {"fabric": lab.fabric_netns, "world": lab.world_netns}
        shared |= {path.name: f"{lab.prefix}{path.name}" for path in lab.folder.glob("node*")}
        if name in shared:
            return Place(shared[name], cgroups.group(lab.name, name, "exec"))
        if not any(pod.name == pod_name for pod in runtimes.pods(lab)):
            raise NotFoundError(
                f"lab {lab.name} has no pod or place {name!r}",
                f"places: {', '.join(sorted(shared))}; pods: cilium lab pod list",
            )
    pod = runtimes.find(lab, in_namespace, pod_name)
    return Place(pod.netns, pod.cgroup)
