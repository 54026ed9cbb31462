"""One header serves both sides: Python's layouts are the compiler's."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cilium_agent.datapath import compiling
from cilium_core import abi

from tests.unit.datapath.conftest import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


def test_every_size_and_offset_is_what_the_compiler_makes_of_it(
    tmp_path: Path, compiler: None
) -> None:
    claims = [
        f'_Static_assert(sizeof(struct {name}) == {abi.sizeof(name)}, "{name}");'
        for name in abi.structs
    ] + [
        f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");'
        for name in abi.structs
        for field, (offset, _) in abi.fields(name).items()
    ]
    file = tmp_path / "claims.c"
    text = "#include <uapi/linux/bpf.h>\n#undef CONFIG_AUDIT\n#include <abi.h>\n" + "\n".join(
        claims
    )
    file.write_text(text + "\nint claims(struct __sk_buff *skb) { return 0; }\n")

    done = subprocess.run(
        [sys.executable, compiling._COMPILER, file, f"-I{REPOSITORY / 'bpf' / 'lib'}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", abi.structs)
def test_numpy_sees_the_same_layout(name: str) -> None:
    dtype = abi.dtype(name)

    assert dtype.fields is not None
    found = {field: (info[1], info[0].itemsize) for field, info in dtype.fields.items()}

    assert found == abi.fields(name)
    assert dtype.itemsize == abi.sizeof(name)


def test_a_packed_struct_reads_back_through_every_view() -> None:
    data = abi.pack("event", type=4, verdict=-133, saddr=b"\x0a\0\0\1", sport=80)

    again = abi.unpack("event", data)
    row = np.frombuffer(data, abi.dtype("event"))[0]
    viewed = abi.view("event", "type", "verdict", "saddr").unpack(data)

    assert (again.type, again.verdict, bytes(again.saddr)[:4]) == (4, -133, b"\x0a\0\0\1")
    assert (row["type"], row["verdict"], row["sport"]) == (4, -133, 80)
    assert viewed == (4, -133, b"\x0a\0\0\1" + bytes(12))


def test_a_view_in_another_order_than_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ct_entry.lifetime stands before"):
        abi.view("ct_entry", "flags", "lifetime")


def test_bytes_too_long_for_a_field_are_refused() -> None:
    with pytest.raises(OverflowError, match=r"event.smac: 7 bytes, and 6 is the most"):
        abi.pack("event", smac=bytes(7))


def test_too_few_bytes_for_a_struct_are_refused() -> None:
    with pytest.raises(ValueError, match=r"struct event is 128 bytes long, 127 were given"):
        abi.unpack("event", bytes(127))


def test_enumerators_are_attributes_and_enums() -> None:
    assert abi.TRACE_TO_LXC == abi.enum("trace_point").TRACE_TO_LXC == 0
    assert abi.enum("ct_flag")(3) == abi.CT_INITIATOR_HIGH | abi.CT_TX_CLOSING
    with pytest.raises(AttributeError, match=r"NO_SUCH is not in abi\.h"):
        abi.NO_SUCH  # noqa: B018 - the access is the test
