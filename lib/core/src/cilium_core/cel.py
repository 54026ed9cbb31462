"""CEL expressions over flows: Google's own evaluator, with `_flow` being a flow.Flow.

An expression is compiled and type-checked once, in the container `flow`, so that `Verdict.DROPPED`
names what it does in the API.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from cel_expr_python import cel  # type: ignore[import-untyped]
from flow import flow_pb2

from cilium_core.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_LENGTH: Final = 4096
"""Most characters of an expression."""


class CelError(InvalidError):
    """An expression that cannot be compiled, or whose result is no bool."""


@functools.cache
def _environment() -> Any:
    # the pool finds the type by its name once the module that defines it is loaded
    kind = cel.Type(flow_pb2.Flow.DESCRIPTOR.full_name)
    return cel.NewEnv(variables={"_flow": kind}, container="flow")


def compile_expressions(texts: Sequence[str]) -> Callable[[flow_pb2.Flow], bool]:
    """A predicate that asks expressions in turn until one holds; it never raises.

    One that fails, as a division by zero does, ends the asking, and the flow does not pass.
    Raises CelError.
    """
    programs = [_compile(text) for text in texts]

    def holds(flow: flow_pb2.Flow) -> bool:
        try:
            for program in programs:
                found = program.eval(data={"_flow": flow}).value()
                if found is not False:
                    return found is True  # anything else is a failure, told as a text
        except RuntimeError:
            return False
        return False

    return holds


def _compile(text: str) -> Any:
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
    return program
