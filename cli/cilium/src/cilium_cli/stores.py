# SPDX-License-Identifier: Apache-2.0
"""Reaches the objects kept in a cluster's etcd: a lab's, or one given by address.

A lab's etcd listens inside the lab. A command that speaks with it moves into the lab's fabric
namespace first and stays there: the file system, and with it every unix socket, is the same.
"""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cilium_cli.errors import CommandError, DeadlineError, InputError, NotFoundError
from cilium_cli.errors import UnreachableError as Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cilium_core.resources.model import Source

_LIMIT_S = 15.0
"""Longest wait for the next answer of etcd; there may be thousands."""


class StoreAddress(NamedTuple):
    """Where etcd is, and the namespace to ask it from ("" for this one)."""

    endpoint: str
    netns: str


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--etcd` and `--lab`; the command receives a StoreAddress as `store`."""

    @click.option("--lab", "lab_name", envvar="CILIUM_LAB", help="Lab; the only one by default.")
    @click.option(
        "--etcd", "endpoint", envvar="CILIUM_ETCD_ENDPOINTS", help="Instead of a lab: HOST:PORT."
    )
    @wraps(command)
    def wrapper(endpoint: str | None, lab_name: str | None, **arguments: Any) -> Any:
        return command(store=_find(endpoint, lab_name), **arguments)

    return wrapper


def _find(endpoint: str | None, lab_name: str | None) -> StoreAddress:
    if endpoint:
        return StoreAddress(endpoint, "")
    from cilium_cli.targets import find_lab

    lab = find_lab(lab_name)
    return StoreAddress(lab.etcd_endpoint, lab.fabric_netns)


def with_source(
    address: StoreAddress, work: Callable[[Source, Callable[[], None]], Awaitable[None]]
) -> None:
    """Run the work with a Source; the core's errors become the command line's.

    The work calls the other thing that it is given after each of many answers, so that the time
    that it may take begins anew.
    """
    from cilium_core import errors

    if address.netns:
        from cilium_cli.lab import namespaces

        namespaces.enter(address.netns)
    try:
        asyncio.run(_run(address, work))
    except TimeoutError:
        raise DeadlineError(
            f"etcd at {address.endpoint} did not answer within {_LIMIT_S:g} s",
            "is it running? in a lab: cilium lab status",
        ) from None
    except errors.NotFoundError as error:
        raise NotFoundError(str(error)) from error
    except errors.InvalidError as error:
        raise InputError(str(error)) from error
    except errors.UnavailableError as error:
        raise Unreachable(str(error)) from error
    except errors.CiliumError as error:
        raise CommandError(str(error)) from error


async def _run(
    address: StoreAddress, work: Callable[[Source, Callable[[], None]], Awaitable[None]]
) -> None:
    from cilium_core.kvstore.etcd import EtcdStore
    from cilium_core.resources.etcd import EtcdSource
    from cilium_core.settings import TelemetrySettings
    from cilium_core.telemetry import setup_logging

    setup_logging(TelemetrySettings(log_level="error"), service="cilium")
    store = EtcdStore(address.endpoint.split(","))
    try:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_LIMIT_S) as limit:
            await work(EtcdSource(store), lambda: limit.reschedule(loop.time() + _LIMIT_S))
    finally:
        await store.close()
