# SPDX-License-Identifier: Apache-2.0
"""A cluster on one machine: nodes and pods are network namespaces, everything else is real.

From lowest to highest: `layouts` (names and paths), `namespaces`, `cgroups`, `processes`,
`fabrics` (devices), `etcd`, `components` (how each service is started), `readiness`, `runtimes`
(pods, the part of a container runtime) and `clusters` (up, down, status).

The kernel and a folder below /run are the only state: any command finds a lab again after any
crash, and `down` removes it from what it finds, not from what it remembers.
"""
