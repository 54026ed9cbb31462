# SPDX-License-Identifier: Apache-2.0
"""One module a command of the command line; each is imported only when its command runs."""
