# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin: a thin client of the node's agent.

A container runtime executes it once per verb and pod, so it uses the standard library alone and
imports as little of it as it can: starting is most of what it costs.
"""
