# SPDX-License-Identifier: Apache-2.0
"""Reads what a runtime hands over: CNI_* variables and the network configuration on stdin.

Pure but for `read`, which takes the two sources as arguments. Every complaint names the variable
or the key, its value and what would be accepted.
"""

import json
import re

from cilium_cni.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    UNSUPPORTED_FIELD,
    CNIError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not imported at run time: it costs a tenth of the start
    from collections.abc import Mapping
    from typing import Any

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification the plugin speaks, oldest first."""

DEFAULT_STATE_DIR = "/var/run/cilium"

# Which variables a verb needs, and the version it came with.
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
}
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_INTERFACE_NAME = re.compile(r"[^\s/:]{1,15}")


class Request:
    """One call of the plugin.

    `netns` is empty when the runtime gave none (allowed for DEL). `args` are the pairs of
    CNI_ARGS, among them K8S_POD_NAMESPACE and K8S_POD_NAME.
    """

    def __init__(self, verb: str, environ: "Mapping[str, str]", config: "dict[str, Any]") -> None:
        self.verb = verb
        self.config = config
        self.version: str = config["cniVersion"]
        self.container_id = environ.get("CNI_CONTAINERID", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.ifname = environ.get("CNI_IFNAME", "")
        self.args = parse_args(environ.get("CNI_ARGS", ""))
        self.state_dir = str(config.get("state-dir") or DEFAULT_STATE_DIR)

    def body(self) -> "dict[str, Any]":
        """Return what the agent is told; the same object is queued for a deferred DEL."""
        return {
            "containerID": self.container_id,
            "netns": self.netns,
            "ifname": self.ifname,
            "args": self.args,
            "config": self.config,
        }


def parse_args(text: str) -> "dict[str, str]":
    """Split `K=V;K=V`; raises CNIError for an item without `=`."""
    pairs = {}
    for item in filter(None, text.split(";")):
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise CNIError(INVALID_ENVIRONMENT, f"CNI_ARGS: {item!r} is not of the form KEY=VALUE")
        pairs[key] = value
    return pairs


def parse_config(text: str) -> "dict[str, Any]":
    """Decode a network configuration and check its version, name and type."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CNIError(
            DECODING_FAILURE, "the network configuration on stdin is not JSON", str(error)
        ) from error
    if not isinstance(config, dict):
        raise CNIError(DECODING_FAILURE, "the network configuration on stdin is not a JSON object")
    config.setdefault("cniVersion", VERSIONS[0])
    version = config["cniVersion"]
    if version not in VERSIONS:
        raise CNIError(
            INCOMPATIBLE_VERSION,
            f"cniVersion: {version!r} is not supported",
            f"this plugin speaks {', '.join(VERSIONS)}",
        )
    name = config.get("name")
    if not isinstance(name, str) or not _CONTAINER_ID.fullmatch(name):
        raise CNIError(INVALID_CONFIG, f"name: {name!r} is not a network name")
    mode = config.get("chaining-mode", "none")
    if mode != "none":
        raise CNIError(
            UNSUPPORTED_FIELD,
            f"chaining-mode: {mode!r} is not supported",
            'remove the key or set it to "none"',
        )
    return config


def read(environ: "Mapping[str, str]", text: str) -> Request:
    """Build the request, or raise CNIError for the first thing that is wrong with it."""
    verb = environ.get("CNI_COMMAND", "")
    if verb not in _NEEDS:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"CNI_COMMAND: {verb!r} is not a verb",
            f"one of {', '.join(_NEEDS)}, VERSION",
        )
    for variable in _NEEDS[verb]:
        if not environ.get(variable):
            raise CNIError(INVALID_ENVIRONMENT, f"{variable} is not set; {verb} needs it")
    container_id = environ.get("CNI_CONTAINERID", "")
    if container_id and not _CONTAINER_ID.fullmatch(container_id):
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID: {container_id!r} is not a container id",
            "letters, digits, '_', '.' and '-', beginning with a letter or digit",
        )
    ifname = environ.get("CNI_IFNAME", "")
    if ifname and (not _INTERFACE_NAME.fullmatch(ifname) or ifname in {".", ".."}):
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"CNI_IFNAME: {ifname!r} is not a device name",
            "1 to 15 characters without white space, '/' and ':'",
        )
    config = parse_config(text)
    since = _SINCE.get(verb)
    if since and VERSIONS.index(config["cniVersion"]) < VERSIONS.index(since):
        raise CNIError(
            INCOMPATIBLE_VERSION,
            f"cniVersion: {config['cniVersion']!r} does not know {verb}",
            f"{verb} needs {since} or newer",
        )
    if verb == "CHECK" and not isinstance(config.get("prevResult"), dict):
        raise CNIError(
            INVALID_CONFIG, "prevResult is missing; CHECK needs the result of ADD to compare with"
        )
    return Request(verb, environ, config)
