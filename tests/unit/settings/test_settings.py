from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Literal

import pytest
from cilium_core.settings import (
    KvstoreSettings,
    Problem,
    Seconds,
    SettingsError,
    format_duration,
    load,
    load_or_exit,
    parse_duration,
    parse_size,
    setting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Example(KvstoreSettings):
    interval: Seconds = setting(5.0, "How often.", low=1, high=60)
    enable_ipv6: bool = setting(True, "Whether IPv6 is used.")
    pools: tuple[IPv4Network, ...] = setting((IPv4Network("10.0.0.0/8"),), "Pools of addresses.")
    mode: Literal["low", "medium"] = setting("medium", "How much is aggregated.")

    def check(self) -> Iterator[Problem]:
        if self.mode == "low" and self.interval > 30:
            yield Problem("interval", "must be 30s or less while mode is low")


def of(*argv: str, environ: dict[str, str] | None = None) -> Example:
    return load(Example, argv, environ or {}).value


def test_a_flag_wins_over_environment_over_directory_over_default(tmp_path: Path) -> None:
    (tmp_path / "interval").write_text("20s\n")
    flags = ["--config-dir", str(tmp_path)]
    variables = {"CILIUM_INTERVAL": "30s"}

    assert of().interval == 5
    assert of(*flags).interval == 20
    assert of(*flags, environ=variables).interval == 30
    loaded = load(Example, [*flags, "--interval=40s"], variables)
    assert (loaded.value.interval, loaded.sources["interval"]) == (40, "flag")


def test_booleans_may_stand_alone_or_have_a_value() -> None:
    assert of("--enable-ipv6").enable_ipv6 is True
    assert of("--enable-ipv6=false").enable_ipv6 is False
    assert of("--enable-ipv6", "off", "--mode", "low").enable_ipv6 is False


def test_lists_are_separated_by_commas_or_repeated() -> None:
    two = (IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16"))
    assert of("--pools", "10.1.0.0/16,10.2.0.0/16").pools == two
    assert of("--pools", "10.1.0.0/16", "--pools=10.2.0.0/16").pools == two


def test_every_mistake_is_reported_at_once_with_key_value_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "mode").write_text("loud")
    with pytest.raises(SettingsError) as caught:
        of(
            "--config-dir",
            str(tmp_path),
            "--interval",
            "90s",
            "--enable-ipv8",
            "--pools=10.0.0.1/8",
        )
    assert [str(problem) for problem in caught.value.problems] == [
        "--enable-ipv8: no such flag; did you mean enable-ipv6?",
        "interval: expected 1m or less, got '90s' (from flag)",
        "pools: expected an IPv4 network such as 10.244.0.0/16, got '10.0.0.1/8' (from flag)",
        f"mode: expected one of low, medium, got 'loud' (from {tmp_path}/mode)",
    ]


def test_rules_between_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="must be 30s or less while mode is low"):
        of("--mode=low", "--interval=40s")


def test_unknown_keys_of_the_directory_warn(tmp_path: Path) -> None:
    (tmp_path / "intervall").write_text("20s")
    (tmp_path / "bpf-map-size").write_text("1")
    (tmp_path / "..data").mkdir()
    flags = ["--config-dir", str(tmp_path)]

    assert load(Example, flags, {}).warnings == (
        f"{tmp_path}/bpf-map-size: no such setting, ignored",
        f"{tmp_path}/intervall: no such setting, ignored; did you mean interval?",
    )
    assert load(Example, flags, {}, shared_directory=True).warnings == (
        f"{tmp_path}/intervall: no such setting, ignored; did you mean interval?",
    )


def test_a_missing_config_directory_is_an_error() -> None:
    with pytest.raises(SettingsError, match="'/nonexistent' is not a directory"):
        of("--config-dir", "/nonexistent")


def test_kvstore_options_give_the_addresses() -> None:
    assert of().etcd_addresses() == ("127.0.0.1:2379",)
    assert of("--kvstore-opt", "etcd.address=http://a:1,b:2,etcd.qps=9").etcd_addresses() == (
        "a:1",
        "b:2",
    )


def test_help_explains_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_or_exit(Example, program="example", about="shows settings.", argv=["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--interval DURATION [5s]\n      How often. Between 1s and 1m." in text
    assert "--mode low|medium [medium]" in text


def test_wrong_settings_end_the_program_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_or_exit(Example, program="example", about="", argv=["--interval"])
    assert caught.value.code == 2
    assert "example: --interval: needs a value: --interval VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("1h30m", 5400), ("250ms", 0.25), ("1.5s", 1.5), ("0", 0)]
)
def test_durations_are_read_and_written_back(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "5x", "s", "-1", "nan", "1s2"])
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration"):
        parse_duration(text)


def test_sizes_are_binary_or_decimal() -> None:
    assert [parse_size(text) for text in ("4096", "64Ki", "10MB", "1G")] == [
        4096,
        65536,
        10_000_000,
        10**9,
    ]
