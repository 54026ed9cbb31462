"""CEL expressions over flows: Google's own evaluator, with `_flow` being a flow.Flow.

An expression is compiled and type-checked once, in the container `flow`, so that `Verdict.DROPPED`
names what it does in the API. What fails while it is evaluated, a division by zero say, does not
match.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from cel_expr_python import cel  # type: ignore[import-untyped]
from flow import flow_pb2

from cilium_core.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LENGTH: Final = 4096
"""Most characters of an expression."""


class CelError(InvalidError):
    """An expression that cannot be compiled, or whose result is no bool."""


@functools.cache
def _environment() -> Any:
    # the pool finds the type by its name once the module that defines it is loaded
    kind = cel.Type(flow_pb2.Flow.DESCRIPTOR.full_name)
    return cel.NewEnv(variables={"_flow": kind}, container="flow")


def compile_expression(text: str) -> Callable[[flow_pb2.Flow], bool]:
    """The predicate of an expression; it never raises. Raises CelError."""
    if len(text) > MAX_LENGTH:
        raise CelError(f"{len(text)} characters, and {MAX_LENGTH} is the most")
    try:
        program = _environment().compile(text)
    except RuntimeError as error:
        said = str(error).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")
        raise CelError(said) from error
    kind = program.return_type()
    if kind != cel.Type.BOOL:
        raise CelError(f"expected the expression to be a bool, and it is a {kind.name().lower()}")

    def holds(flow: flow_pb2.Flow) -> bool:
        try:
            return program.eval(data={"_flow": flow}).value() is True
        except RuntimeError:
            return False

    return holds
