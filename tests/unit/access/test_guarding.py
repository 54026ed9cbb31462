"""The guard of a server keeps to its rules when their file is wrong or away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.access import METADATA_KEY, Access, Limits, RulesError
from cilium_core.errors import ForbiddenError, InvalidError

if TYPE_CHECKING:
    from pathlib import Path

FLOWS = "observer.Observer/GetFlows"
RULES = "clients: [{names: [x], namespaces: [a]}]"


class Caller:
    """A call of a client with a common name; None is a client of the unix socket."""

    peer = ""

    def __init__(self, name: str | None, **metadata: str) -> None:
        self.is_local = name is None
        self.certificate = {"subject": ((("commonName", name),),)} if name else {}
        self.metadata = metadata
        self.limits: Limits | None = None


async def limits_of(access: Access, caller: Caller, method: str = FLOWS) -> set[str] | None:
    async def handle(call: Any) -> None:
        pass

    await access(method, caller, handle)
    return None if caller.limits is None else set(caller.limits.namespaces)


def write(path: Path, content: str | None) -> None:
    """Put another file in its place, or none."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "rules.yaml"
    made.write_text(RULES)
    return made


async def test_without_rules_everybody_may_see_everything() -> None:
    assert await limits_of(Access(), Caller("x")) is None
    assert await limits_of(Access(), Caller("")) is None


async def test_clients_of_the_unix_socket_need_no_rule(path: Path) -> None:
    assert await limits_of(Access(path), Caller(None)) is None
    with pytest.raises(ForbiddenError, match="a client without certificate may see no namespace"):
        await limits_of(Access(path), Caller(""))


@pytest.mark.parametrize("content", ["clients: [", "clients: 1", None])
async def test_rules_that_cannot_be_used_change_nothing(path: Path, content: str | None) -> None:
    access = Access(path)
    write(path, content)
    access.look()
    assert await limits_of(access, Caller("x")) == {"a"}
    write(path, RULES.replace("[a]", "[b]"))
    access.look()
    assert await limits_of(access, Caller("x")) == {"b"}


def test_a_server_does_not_start_with_rules_that_cannot_be_used(path: Path) -> None:
    path.write_text("others: 7")
    with pytest.raises(RulesError, match="others must be a list"):
        Access(path)


async def test_a_method_that_knows_no_limits_is_refused_by_default(path: Path) -> None:
    access = Access(path)
    with pytest.raises(ForbiddenError, match=r"some\.Service/New is only for clients that may"):
        await limits_of(access, Caller("x"), "some.Service/New")
    assert await limits_of(access, Caller(None), "some.Service/New") is None
    assert await limits_of(access, Caller("y"), "grpc.health.v1.Health/Check") is None


async def test_what_a_caller_says_of_itself_only_takes_away(path: Path) -> None:
    access = Access(path)
    assert await limits_of(access, Caller("x", **{METADATA_KEY: "a,b"})) == {"a"}
    assert await limits_of(access, Caller(None, **{METADATA_KEY: "b,c"})) == {"b", "c"}
    with pytest.raises(ForbiddenError, match="asks to be limited to others"):
        await limits_of(access, Caller("x", **{METADATA_KEY: "b"}))
    with pytest.raises(ForbiddenError, match="names no namespace"):
        await limits_of(access, Caller(None, **{METADATA_KEY: ""}))
    with pytest.raises(InvalidError, match="300 namespaces, and 256 is the most"):
        await limits_of(access, Caller(None, **{METADATA_KEY: ",".join(map(str, range(300)))}))
