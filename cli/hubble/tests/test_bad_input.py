"""Whatever is typed or read: a clear error or an answer, never a traceback."""

import contextlib
import io
import json

from hubble_cli.__main__ import ROOT, run
from hubble_cli.arguments import flags_of
from hubble_cli.commands.observing import COMMAND
from hubble_cli.errors import HubbleError
from hubble_cli.printing.flows import FlowPrinter
from hubble_cli.printing.outputs import Format, Options
from hubble_cli.replaying import replay
from hypothesis import given, settings
from hypothesis import strategies as some
from observer import observer_pb2

FLAGS = [flag.name for flag in flags_of((ROOT, COMMAND)) if flag.name not in ("config", "help")]
ODD = some.one_of(
    some.text(max_size=12),
    some.sampled_from(["", "-", "--", "=", "1", "-1", "0x", "a/b/c", "{", "{}", "a=b,", "5m", "é"]),
)
WORDS = some.one_of(
    ODD.filter(lambda word: word not in ("-h", "--help")),
    some.builds(lambda flag, value: f"--{flag}={value}", some.sampled_from(FLAGS), ODD),
    some.builds(lambda flag: f"--{flag}", some.sampled_from(FLAGS)),
)
JSON = some.recursive(
    some.one_of(
        some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=5)
    ),
    lambda inner: some.one_of(
        some.lists(inner, max_size=3),
        some.dictionaries(
            some.sampled_from(["flow", "IP", "l4", "TCP", "l7", "time", "source", "x", "verdict"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(some.lists(WORDS, max_size=5))
def test_any_command_line_is_understood_or_refused_with_a_text(words):
    said = io.StringIO()
    # Nothing is sent: no file is there to read, no request leaves.
    safe = ["observe", *words, "--print-raw-filters"]
    if "--" in words:
        return
    try:
        with contextlib.redirect_stdout(said):
            run(safe)
    except HubbleError as error:
        said.write(str(error))
    assert said.getvalue()


@settings(max_examples=200, deadline=None)
@given(some.one_of(JSON.map(json.dumps), some.text(max_size=20)))
def test_any_line_of_a_file_is_a_flow_or_a_warning(line):
    warnings = []
    found = list(replay([line], observer_pb2.GetFlowsRequest(), warnings.append))
    out, err = io.StringIO(), io.StringIO()

    for output in Format:
        printer = FlowPrinter(Options(output=output, debug=True), out, err)
        for response in found:
            printer.print(response)
        printer.streams.close()

    assert found or warnings
