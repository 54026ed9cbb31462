"""The oracle's reading of rules about requests: HTTP, DNS, Kafka and the server names of TLS.

Rules are elements of `toPorts` as written. A request is a dict with its `kind` and what that has:
http: method, path, host, headers (name in lower case to value), sni (None without TLS); dns: name;
kafka: key, version, client, topic; tls: sni.
"""

from __future__ import annotations

import re
from typing import Any

PRODUCE = {0, 3, 18}
CONSUME = {1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18}
API_KEYS = {"produce": 0, "fetch": 1, "metadata": 3, "apiversions": 18}
TOPIC_KEYS = {0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 19, 20, 21, 23, 24, 27, 28, 34, 35, 37}


def kind_of(rule: dict[str, Any]) -> str | None:
    """What a proxy must be able to read for an element of toPorts; None when none is needed."""
    for kind in ("http", "kafka", "dns"):
        if (rule.get("rules") or {}).get(kind):
            return kind
    tls = rule.get("serverNames") or rule.get("terminatingTLS") or rule.get("originatingTLS")
    return "tls" if tls else None


def protocols(rule: dict[str, Any]) -> tuple[int, ...]:
    """The protocols that an element of toPorts can be about."""
    return {"dns": (6, 17), "tls": (6,), None: (6, 17, 132)}.get(kind_of(rule), (6,))


def passes(
    rules: list[tuple[dict[str, Any] | None, bool]], proxy: str, request: dict[str, Any]
) -> bool:
    """Whether a proxy that reads one kind lets a request pass.

    `rules` are all that allow the connection, None for those that ask nothing of requests, each
    with whether it names the very port.
    """
    opened = any(rule and rule.get("terminatingTLS") for rule, _ in rules)
    for rule, exact in rules:
        if rule is None:
            if proxy != "dns" or exact:
                return True
            continue
        kind = kind_of(rule)
        names = [name.lower() for name in rule.get("serverNames") or []]
        if kind not in (proxy, "tls" if proxy in ("http", "kafka") else proxy):
            continue
        if kind != proxy and names and not opened:
            continue
        if names and not any(name_matches(name, request.get("sni") or "") for name in names):
            continue
        if kind == "tls" or any(MATCHERS[kind](one, request) for one in rule["rules"][kind]):
            return True
    return False


def name_matches(pattern: str, name: str) -> bool:
    """Whether a DNS name is meant: `*` within one label, `**.` in front for one or more labels."""
    pattern, name = pattern.strip().lower().rstrip("."), name.lower().rstrip(".")
    if pattern and not pattern.replace("*", ""):
        return True
    wanted, given = pattern.split("."), name.split(".")
    if len(wanted) > 1 and len(wanted[0]) > 1 and not wanted[0].replace("*", ""):
        rest = wanted[1:]
        tails = (given[index:] for index in range(1, len(given)))
        return any(same_labels(rest, tail) for tail in tails)
    return same_labels(wanted, given)


def same_labels(wanted: list[str], given: list[str]) -> bool:
    return len(wanted) == len(given) and all(
        re.fullmatch("[-a-z0-9_]*".join(re.escape(part) for part in one.split("*")), label)
        for one, label in zip(wanted, given, strict=True)
    )


def http_matches(rule: dict[str, Any], request: dict[str, Any]) -> bool:
    for field in ("path", "method", "host"):
        if rule.get(field) and not re.fullmatch(rule[field], request[field]):
            return False
    headers = request["headers"]
    for text in rule.get("headers") or []:
        name, blank, value = text.partition(" ")
        found = headers.get(name.removesuffix(":").lower() if blank else text.lower())
        if found is None or (blank and found != value):
            return False
    for one in rule.get("headerMatches") or []:
        found = headers.get(one["name"].lower())
        if one.get("mismatch"):
            continue
        if found is None or ("value" in one and found != one["value"]):
            return False
    return True


def dns_matches(rule: dict[str, Any], request: dict[str, Any]) -> bool:
    return name_matches(rule.get("matchName") or rule["matchPattern"], request["name"])


def kafka_matches(rule: dict[str, Any], request: dict[str, Any]) -> bool:
    keys = {"produce": PRODUCE, "consume": CONSUME}.get(rule.get("role", ""))
    if rule.get("apiKey"):
        keys = {API_KEYS[rule["apiKey"].lower()]}
    if keys is not None and request["key"] not in keys:
        return False
    if rule.get("apiVersion") and int(rule["apiVersion"]) != request["version"]:
        return False
    if rule.get("clientID") and rule["clientID"] != request["client"]:
        return False
    return (
        not rule.get("topic")
        or request["key"] not in TOPIC_KEYS
        or (rule["topic"] == request["topic"])
    )


MATCHERS = {"http": http_matches, "dns": dns_matches, "kafka": kafka_matches}
