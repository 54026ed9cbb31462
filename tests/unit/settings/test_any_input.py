"""Whatever is given as flags, environment or files ends in settings or in a SettingsError."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from cilium_core.errors import InvalidError
from cilium_core.serving.sockets import split_address
from cilium_core.settings import SettingsError, fields_of, load
from cilium_operator.settings import OperatorSettings
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = st.sampled_from([field.key for field in fields_of(OperatorSettings)])
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["²", "-1", "1e999", "0x", "fd00::/300", "10.0.0.0/8,", "a=,=", "٣s", "\x00"]),
)
WORDS = st.one_of(
    TEXT,
    st.builds("--{}={}".format, KEYS, TEXT),
    st.builds("--{}".format, KEYS),
    st.builds("--{}".format, TEXT),
)


@settings(max_examples=300, deadline=None)
@given(argv=st.lists(WORDS, max_size=5), variables=st.dictionaries(KEYS, TEXT, max_size=3))
def test_flags_and_environment(argv: list[str], variables: dict[str, str]) -> None:
    environ = {f"CILIUM_{key.upper().replace('-', '_')}": text for key, text in variables.items()}
    with contextlib.suppress(SettingsError):
        load(OperatorSettings, argv, environ).effective()


@settings(max_examples=100, deadline=None)
@given(files=st.dictionaries(KEYS, st.binary(max_size=20), max_size=3))
def test_files(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for key, content in files.items():
            Path(directory, key).write_bytes(content)
        with contextlib.suppress(SettingsError):
            load(OperatorSettings, ["--config-dir", directory], {}).effective()


@given(TEXT)
def test_addresses(text: str) -> None:
    for address in (text, f"host:{text}", f"[{text}]:1"):
        with contextlib.suppress(InvalidError):
            split_address(address)
