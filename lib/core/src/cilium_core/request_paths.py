"""The path of a request, read out of its URL as Hubble's servers read it.

Filters by path look at the decoded path alone. URLs come from what clients sent, so anything may
stand in them; what is no URL of a request has no path and passes no such filter. Python's own
`urlsplit` takes nearly every text, which is why the rules stand here: those of RFC 3986 for an
absolute URL or an absolute path, where a request has no fragment and `#` is a letter of the path.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import unquote

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME: Final = re.compile(r"[A-Za-z][-+.A-Za-z0-9]*:")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_USER: Final = re.compile(r"[-A-Za-z0-9._:~!$&'()*+,;=%@]*")
_HOST: Final = re.compile(
    r"(?:[-A-Za-z0-9._~!$&'()*+,;=:\[\]<>\"]|[^\x00-\x7f]|%25|%[89A-Fa-f]..)*"
)
_PORT: Final = re.compile(r":[0-9]*")
_PLAIN: Final = re.compile(
    r"(?:https?://[-A-Za-z0-9.]+(?::[0-9]+)?)?(/[-A-Za-z0-9._~/]*)(?:\?[\x21-\x7e]*)?"
)
"""Nearly all there are: nothing in them is escaped or strange."""

_WEB: Final = frozenset({"http", "https"})


def request_path(url: str) -> str | None:
    """The decoded path of an absolute URL or path; None when `url` is neither.

    It is empty for a URL without a host, such as `mailto:a@b`, and `*` for `*`.
    """
    plain = _PLAIN.fullmatch(url)
    return plain[1] if plain else _path_of_any(url)


def _path_of_any(url: str) -> str | None:
    if url == "*":
        return url
    if not url or _CONTROL.search(url) or url.startswith(":"):
        return None
    scheme = _SCHEME.match(url)
    rest = url[scheme.end() if scheme else 0 :].partition("?")[0]
    if not rest.startswith("/"):
        return "" if scheme else None
    if scheme and rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        if not _is_authority(authority, scheme[0][:-1].lower()):
            return None
        rest = slash + path
    return None if _BAD_ESCAPE.search(rest) else unquote(rest)


def _is_authority(authority: str, scheme: str) -> bool:
    user, _, host = authority.rpartition("@")
    if not _USER.fullmatch(user) or _BAD_ESCAPE.search(user):
        return False
    if host.startswith("["):
        literal, bracket, port = host[1:].rpartition("]")
        return bool(bracket) and _is_port(port) and _is_literal(literal)
    if "[" in host or _BAD_ESCAPE.search(host) or not _HOST.fullmatch(host):
        return False
    # a host has no colon itself; of schemes other than the web's it is taken from the last one on
    _, colon, port = host.partition(":") if scheme in _WEB else host.rpartition(":")
    return _is_port(colon + port if colon else "")


def _is_port(text: str) -> bool:
    return not text or _PORT.fullmatch(text) is not None


def _is_literal(text: str) -> bool:
    """Whether this may stand in brackets: an IPv6 address, with or without a zone after `%25`."""
    address, percent, zone = text.partition("%25")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return "%" not in address and (not percent or bool(zone))
