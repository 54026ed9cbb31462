"""Options that can change while the agent runs, as text the way users write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cilium_core.settings import format_duration, parse_duration

from cilium_agent.errors import OptionError
from cilium_agent.settings import AGGREGATION_LEVELS, TCP_FLAG_BITS, tcp_flag_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cilium_agent.datapath import NodeConfig

_LEVEL_NAMES = {number: name for name, number in AGGREGATION_LEVELS.items()}


def current(config: NodeConfig) -> dict[str, str]:
    """The options as they are."""
    return {
        "enable-hubble": _show_bool(config.hubble),
        "monitor-aggregation": _LEVEL_NAMES.get(config.aggregation, str(config.aggregation)),
        "monitor-aggregation-flags": ",".join(
            name for name, bit in TCP_FLAG_BITS.items() if config.aggregation_flags & bit
        ),
        "monitor-aggregation-interval": format_duration(config.aggregation_interval_s),
        "policy-audit-mode": _show_bool(config.audit),
        "policy-verdict-notification": _show_bool(config.policy_verdicts),
        "drop-notification": _show_bool(config.drop_events),
        "debug-events": _show_bool(config.debug_events),
    }


def changes(options: Mapping[str, str]) -> dict[str, Any]:
    """What to change in the data plane's configuration; raises `OptionError`."""
    changed: dict[str, Any] = {}
    for name, text in options.items():
        option = _OPTIONS.get(name)
        if option is None:
            known = ", ".join(sorted(_OPTIONS))
            raise OptionError(
                f"option {name!r} does not exist or cannot change now; known: {known}"
            )
        field, parse = option
        try:
            changed[field] = parse(text.strip())
        except ValueError as error:
            raise OptionError(f"option {name}: expected {error}, got {text!r}") from error
    return changed


def _show_bool(value: bool) -> str:
    return "true" if value else "false"


def _parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1", "enabled"):
        return True
    if text.lower() in ("false", "no", "off", "0", "disabled"):
        return False
    raise ValueError("true or false")


def _parse_level(text: str) -> int:
    if text.lower() not in AGGREGATION_LEVELS:
        raise ValueError("one of " + ", ".join(AGGREGATION_LEVELS))
    return AGGREGATION_LEVELS[text.lower()]


def _parse_interval(text: str) -> int:
    seconds = parse_duration(text)
    if not 1 <= seconds <= 3600:
        raise ValueError("1s to 1h")
    return round(seconds)


def _parse_flags(text: str) -> int:
    try:
        return tcp_flag_mask(tuple(name.strip() for name in text.split(",") if name.strip()))
    except ValueError as error:
        raise ValueError(f"TCP flags ({error})") from error


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "enable-hubble": ("hubble", _parse_bool),
    "monitor-aggregation": ("aggregation", _parse_level),
    "monitor-aggregation-flags": ("aggregation_flags", _parse_flags),
    "monitor-aggregation-interval": ("aggregation_interval_s", _parse_interval),
    "policy-audit-mode": ("audit", _parse_bool),
    "policy-verdict-notification": ("policy_verdicts", _parse_bool),
    "drop-notification": ("drop_events", _parse_bool),
    "debug-events": ("debug_events", _parse_bool),
}
