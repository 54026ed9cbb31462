"""Filter flags, compared with the FlowFilters that Hubble's public client makes of them."""

import json
import shlex
from pathlib import Path

import pytest
from hubble_cli.__main__ import run
from hubble_cli.errors import HubbleError, UsageError
from hubble_cli.filtering import FLAGS, FilterFlags

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "flags.jsonl").read_text("utf-8").splitlines()
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["flags"])
def test_flags_make_the_filters_of_the_public_client(row, capsys):
    words = ["observe", *shlex.split(row["flags"]), "--print-raw-filters"]

    if "error" in row:
        with pytest.raises(HubbleError) as raised:
            run(words)
        assert str(raised.value) == row["error"]
    else:
        run(words)
        assert capsys.readouterr().out == row["out"]


def test_every_filter_flag_is_understood_somewhere():
    from hubble_cli.commands.observing import FILTERS

    assert {flag.name for flag in FILTERS.flags} == FLAGS


def test_printed_filters_work_as_a_configuration_file(tmp_path, capsys):
    run(["observe", "-n", "it's", "--not", "--port", "53", "--print-raw-filters"])
    printed = capsys.readouterr().out
    file = tmp_path / "config.yaml"
    file.write_text(printed)

    run(["observe", "--config", str(file), "--print-raw-filters"])

    assert capsys.readouterr().out == printed


def test_a_conflict_names_both_flags():
    flags = FilterFlags()
    flags.add("label", "a=b")

    with pytest.raises(UsageError, match="filters --label and --to-label cannot be combined"):
        flags.add("to-label", "c=d")
