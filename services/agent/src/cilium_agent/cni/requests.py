"""Requests of the CNI plugin, checked before anything else looks at them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cilium_agent.endpoints.records import Attachment
from cilium_agent.errors import RequestError

# Container ids as the CNI specification has them; interface names as the kernel takes them.
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME = re.compile(r"[^\s/:]{1,15}")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclass(frozen=True)
class PodRequest:
    """An ADD, DEL or CHECK. `namespace` and `pod_name` may be empty for DEL."""

    attachment: Attachment
    namespace: str
    pod_name: str
    pod_uid: str
    previous: Mapping[str, object] | None

    @property
    def pod(self) -> str:
        """`namespace/name` of the pod."""
        return f"{self.namespace}/{self.pod_name}"


def parse(body: bytes, *, pod_required: bool) -> PodRequest:
    """Read a request; raises `RequestError` naming the field that is wrong."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError("the request is not a JSON object")
    container_id = _text(document, "containerID")
    if not _CONTAINER_ID.fullmatch(container_id):
        raise RequestError(f"containerID {container_id!r} is not a container id")
    ifname = _text(document, "ifname")
    if not _IFNAME.fullmatch(ifname) or ifname in (".", ".."):
        raise RequestError(f"ifname {ifname!r} is not an interface name")
    netns = _text(document, "netns") if pod_required else _text(document, "netns", "")
    if pod_required and not netns.startswith("/"):
        raise RequestError(f"netns {netns!r} is not an absolute path")
    args = _object(document, "args")
    namespace = _text(args, "K8S_POD_NAMESPACE", "")
    pod_name = _text(args, "K8S_POD_NAME", "")
    for field, value in (("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", pod_name)):
        if pod_required and (len(value) > 253 or not _NAME.fullmatch(value)):
            raise RequestError(f"args.{field} {value!r} is not a name; the runtime must pass it")
    config = _object(document, "config")
    previous = config.get("prevResult")
    return PodRequest(
        attachment=Attachment(container_id=container_id, netns=netns, ifname=ifname),
        namespace=namespace,
        pod_name=pod_name,
        pod_uid=_text(args, "K8S_POD_UID", ""),
        previous=previous if isinstance(previous, dict) else None,
    )


def _text(document: Mapping[str, object], field: str, default: str | None = None) -> str:
    value = document.get(field, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RequestError(f"{field} is {value!r} instead of a string")
    return value


def _object(document: Mapping[str, object], field: str) -> Mapping[str, object]:
    value = document.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{field} is {value!r} instead of an object")
    return value
