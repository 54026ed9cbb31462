"""Names on disk: `<state-dir>/fqdn.json`, replaced whole, so that a restart forgets nothing.

A file that cannot be read is reported and counts as empty: proxies tell again what is still good.
"""

from __future__ import annotations

import ipaddress
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cilium_core.errors import InvalidError
from cilium_core.files import write_atomic
from cilium_core.labels import LabelSet
from cilium_core.policy.fqdn import normal_name
from cilium_core.telemetry import get_logger

from cilium_agent.fqdn.caches import EndpointNames, Lookup, Zombie

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = get_logger()

FILE_NAME = "fqdn.json"
VERSION = 1


def encode(
    endpoints: Mapping[int, EndpointNames], identities: Mapping[int, LabelSet]
) -> dict[str, Any]:
    """The document that stands for what endpoints learned and for what identities mean."""
    return {
        "version": VERSION,
        "endpoints": {
            str(number): {
                "lookups": [
                    [one.name, str(one.address), one.ttl_s, one.looked_up_s, one.expires_s]
                    for one in names
                ],
                "zombies": [
                    [str(one.address), sorted(one.names), one.died_s, one.kept_until_s]
                    for one in names.zombies.values()
                ],
            }
            for number, names in endpoints.items()
        },
        "identities": {str(number): labels.texts() for number, labels in identities.items()},
    }


def decode(document: Any) -> dict[int, EndpointNames]:
    """What endpoints learned. Raises `InvalidError` when the document makes no sense."""
    try:
        _check_version(document)
        endpoints = {}
        for number, content in document["endpoints"].items():
            names = endpoints[int(number)] = EndpointNames()
            for name, address, ttl_s, looked_up_s, expires_s in content["lookups"]:
                ip = ipaddress.ip_address(address)
                one = Lookup(str(name), ip, int(ttl_s), float(looked_up_s), float(expires_s))
                names.lookups.setdefault(one.name, {})[ip] = one
                names.names.setdefault(ip, set()).add(one.name)
            for address, buried, died_s, kept_until_s in content["zombies"]:
                ip, dead = ipaddress.ip_address(address), {str(name) for name in buried}
                names.zombies[ip] = Zombie(ip, dead, float(died_s), float(kept_until_s))
                names.names.setdefault(ip, set()).update(dead)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError(f"names on disk make no sense: {error!r}") from error
    return endpoints


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document. Raises `OSError`; then the old one stays."""
    write_atomic(path, json.dumps(document, separators=(",", ":")).encode())


def load(path: Path) -> dict[int, EndpointNames]:
    """What an earlier run learned; nothing when there is no file or it cannot be read."""
    document = _read(path)
    if document is None:
        return {}
    try:
        return decode(document)
    except InvalidError as error:
        log.error("names of an earlier run ignored", file=str(path), error=str(error))
        return {}


def restored_labels(path: Path) -> dict[int, LabelSet]:
    """What node-local identities of names meant in an earlier run, by number."""
    document = _read(path)
    try:
        _check_version(document)
        return {
            int(number): LabelSet.parse(texts) for number, texts in document["identities"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def load_pre_cache(path: Path) -> list[Lookup]:
    """Names from a file as `cilium fqdn cache list -o json` writes it.

    Raises `InvalidError` naming the file when it cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
        return [
            Lookup(
                normal_name(entry["fqdn"]),
                ipaddress.ip_address(address),
                int(entry["ttl"]),
                _seconds(entry["lookup-time"]),
                _seconds(entry["expiration-time"]),
            )
            for entry in document
            for address in entry["ips"]
        ]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError(
            f"tofqdns-pre-cache: {path} cannot be read ({error}); "
            "write what `cilium fqdn cache list -o json` prints"
        ) from error


def time_text(seconds: float) -> str:
    """A time of the wall clock as users see it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("names of an earlier run ignored", file=str(path), error=str(error))
        return None


def _check_version(document: Any) -> None:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, expected {VERSION}")
