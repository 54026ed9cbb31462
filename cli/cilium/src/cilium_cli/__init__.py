# SPDX-License-Identifier: Apache-2.0
"""The `cilium` command line and the lab."""
