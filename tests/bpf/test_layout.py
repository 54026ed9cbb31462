"""Python's layout of abi.h against the compiler's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cilium_agent.datapath import specs
from cilium_core import abi, drops

if TYPE_CHECKING:
    from tests.bpf.harness import Plane


def _structs() -> list[str]:
    text = (specs.bpf_folder() / "lib" / "abi.h").read_text()
    return re.findall(r"^struct (\w+) \{", text, re.MULTILINE)


def test_every_shared_struct_is_laid_out_as_the_compiler_does(loaded_plane: Plane) -> None:
    # given the layouts as Python has them, as assertions in C
    lines = ['#include "lib/common.h"']
    for name in _structs():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {abi.sizeof(name)}, "{name}");')
        for field, (offset, _) in abi.fields(name).items():
            where = f"__builtin_offsetof(struct {name}, {field})"
            lines.append(f'_Static_assert({where} == {offset}, "{name}.{field}");')
    lines.append("int cil_nothing(struct __sk_buff *skb) { return 0; }")

    # when the compiler of the programs reads them, then it agrees
    from bcc import BPF

    assert len(lines) > 100
    text = "\n".join(lines).encode()
    assert BPF(text=text, cflags=[f"-I{specs.bpf_folder()}"]).dump_func(b"cil_nothing")


def test_structs_have_no_hidden_padding() -> None:
    for name in _structs():
        end = 0
        for field, (offset, size) in abi.fields(name).items():
            assert end == offset, f"{name}.{field}"
            end = offset + size
        assert end == abi.sizeof(name), name


def test_every_drop_reason_used_in_the_programs_has_a_text() -> None:
    used = set()
    for path in specs.bpf_folder().rglob("*.[ch]"):
        if path.name != "drop_reasons.h":
            used.update(re.findall(r"\b(DROP_[A-Z0-9_]+)\b", path.read_text()))
    listed = re.findall(
        r"^\t(DROP_\w+) = (\d+)",
        (specs.bpf_folder() / "lib" / "drop_reasons.h").read_text(),
        re.MULTILINE,
    )
    codes = {name: int(code) for name, code in listed}
    reasons = {name for name in used if name != "DROP_AT"}
    assert reasons - set(codes) == set()
    assert all(drops.text(codes[name]) for name in reasons)
