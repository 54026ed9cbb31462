"""Root-only fixtures of the data plane's tests: a bpffs folder, a namespace, tiny programs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needing import need, need_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Namespace

REPOSITORY = Path(__file__).parents[3]

_TC = "#include <uapi/linux/bpf.h>\n"
_SOURCES = {
    "lxc.c": """
#include <uapi/linux/bpf.h>
#include "lib/maps.h"
#include "lib/calls.h"
int tail_verdict(struct __sk_buff *skb) { return 42; }
int cil_from_container(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;

	if (bpf_map_lookup_elem_(map_of(DEVICES), &ifindex))
		return 1;
	bpf_tail_call_((void *)map_of(CALLS), skb, CALL_VERDICT);
	return 2;
}
int cil_to_container(struct __sk_buff *skb) { return 0; }
""",
    "host.c": _TC
    + "".join(
        f"int cil_{name}(struct __sk_buff *skb) {{ return 0; }}\n"
        for name in ("from_host", "to_host", "from_netdev", "to_netdev")
    ),
    "overlay.c": _TC
    + "int cil_from_overlay(struct __sk_buff *skb) { return 0; }\n"
    + "int cil_to_overlay(struct __sk_buff *skb) { return 0; }\n",
    "xdp.c": _TC + "int cil_xdp_entry(struct xdp_md *xdp) { return 2; }\n",
    "lib/calls.h": "enum call {\n\tCALL_VERDICT = 3, /* tail_verdict */\n};\n",
}


@pytest.fixture(scope="session")
def root() -> None:
    """The test needs root."""
    need_root("changing maps")


@pytest.fixture(scope="session")
def compiler(root: None) -> None:
    """The test compiles."""
    from cilium_agent.datapath.probing import probe

    found = probe()
    need(", ".join(name for name, works in found.items() if not works))


@pytest.fixture
def bpf_root(root: None) -> Iterator[Path]:
    """A folder of pins that goes away with the test."""
    from cilium_agent.datapath.pinning import ensure_bpffs

    path = Path("/sys/fs/bpf") / f"test-{os.getpid()}-{secrets.token_hex(4)}"
    ensure_bpffs(path)
    yield path
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


@pytest.fixture
def namespace(root: None) -> Iterator[Namespace]:
    """A thread in a network namespace of its own."""
    from tests.bpf.harness import Namespace

    made = Namespace()
    yield made
    made.close()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data plane of tiny programs over the real list of maps."""
    folder = tmp_path_factory.mktemp("bpf")
    (folder / "lib").mkdir()
    for name in ("abi.h", "maps.h"):
        shutil.copy(REPOSITORY / "bpf" / "lib" / name, folder / "lib" / name)
    for name, text in _SOURCES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def template_cache(tmp_path_factory: pytest.TempPathFactory, compiler: None) -> Path:
    return tmp_path_factory.mktemp("templates")
