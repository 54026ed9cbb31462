# SPDX-License-Identifier: Apache-2.0
"""`cilium apply`, `get`, `delete`: Kubernetes objects in etcd, where there is no Kubernetes.

Everything is checked before anything is stored: a file with one wrong object changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cilium_cli.errors import InputError, NotFoundError
from cilium_cli.outputs import emit, output_option, table
from cilium_cli.stores import StoreAddress, store_options, with_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.resources.documents import Document
    from cilium_core.resources.keys import Kind
    from cilium_core.resources.model import Source


def _read(files: tuple[str, ...], *, recursive: bool) -> list[Document]:
    from cilium_cli.files import read

    documents = read(files, recursive=recursive)
    if not documents:
        raise InputError(f"{', '.join(files)}: no object in it")
    return documents


def _check(documents: list[Document]) -> list[Document]:
    """Check all that can be checked; returns what to store, with older forms rewritten.

    Raises InputError with a line for every problem of every object.
    """
    from dataclasses import replace

    from cilium_core.resources.keys import kind_of_object

    kinds = [kind_of_object(document.object) for document in documents]
    if not any(kind.group or kind.name == "Service" for kind in kinds):
        return documents  # the checks take a tenth of a second to load

    from cilium_core.objects.checking import KINDS, check
    from cilium_core.policy.errors import PolicyError
    from cilium_core.policy.options import PERMISSIVE

    lines = []
    found = []
    for document in documents:
        if document.object["kind"] not in KINDS:
            found.append(document)
            continue
        try:
            checked = check(document.object, PERMISSIVE)
        except PolicyError as error:
            subject = f"{error.subject}: " if error.subject else ""
            lines += [
                f"{document.source}:{document.line_of(problem.path)}: {subject}{problem}"
                for problem in error.problems
            ]
        else:
            found += [replace(document, object=dict(one)) for one in checked.objects]
            for warning in checked.warnings:
                place = f"{document.source}:{document.line_of(warning.partition(': ')[0])}"
                click.echo(f"warning: {place}: {warning}", err=True)
    if lines:
        raise InputError("\n  ".join(lines), "nothing was stored")
    return found


def _label(kind: Kind, namespace: str, name: str) -> str:
    """Return `ciliumnetworkpolicy shop/secure-api`."""
    return f"{kind.name.lower()} {f'{namespace}/' if kind.namespaced else ''}{name}"


@click.command(short_help="Store Kubernetes YAML in the cluster's etcd.")
@click.option("-f", "--file", "files", multiple=True, required=True, help="File, folder or -.")
@click.option("-R", "--recursive", is_flag=True, help="Folders below folders as well.")
@click.option("--dry-run", is_flag=True, help="Check only and store nothing.")
@store_options
def apply(store: StoreAddress, files: tuple[str, ...], *, recursive: bool, dry_run: bool) -> None:
    """Store objects; all are checked first, and nothing is stored if one is wrong."""
    from cilium_core.resources.keys import identify

    documents = _check(_read(files, recursive=recursive))
    if dry_run:
        for document in documents:
            click.echo(f"{_label(*identify(document.object))} is valid")
        return

    async def work(source: Source, answered: Callable[[], None]) -> None:
        for document in documents:
            outcome = await source.apply(document.object)
            answered()
            click.echo(f"{_label(*identify(document.object))} {outcome.value}")

    with_source(store, work)


@click.command(short_help="Show stored objects.")
@click.argument("kind")
@click.argument("name", required=False)
@click.option("-n", "--namespace", help="Namespace; all by default, or 'default' with a NAME.")
@output_option
@store_options
def get(
    store: StoreAddress, kind: str, name: str | None, namespace: str | None, output: str
) -> None:
    """Show the stored objects of a KIND (pod, service, cnp, ccnp, netpol, …), or one by NAME."""
    chosen = _kind(kind)
    found: list[dict[str, Any]] = []

    async def work(source: Source, _answered: Callable[[], None]) -> None:
        if name is not None:
            found.append(await source.get(chosen, namespace or "default", name))
        else:
            found.extend(await source.list(chosen, namespace or ""))

    with_source(store, work)
    if not found and output == "table":
        where = f" in namespace {namespace}" if namespace else ""
        click.echo(f"no {chosen.plural}{where}", err=True)
        return
    whole = {"kind": "List", "apiVersion": "v1", "items": found}
    document = whole if name is None else found[0]
    emit(output, document, lambda: _render(chosen, found))


def _render(kind: Kind, items: list[dict[str, Any]]) -> None:
    from cilium_cli import columns

    headers = ["NAMESPACE", "NAME", *columns.headers(kind.name), "LABELS"]
    rows = []
    for item in items:
        metadata = item["metadata"]
        labels = ",".join(f"{k}={v}" for k, v in sorted((metadata.get("labels") or {}).items()))
        own = columns.cells(kind.name, item)
        rows.append([metadata.get("namespace", ""), metadata["name"], *own, labels])
    if not kind.namespaced:
        headers, rows = headers[1:], [row[1:] for row in rows]
    table(headers, rows)


@click.command(short_help="Remove stored objects.")
@click.argument("kind", required=False)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--file", "files", multiple=True, help="What these files describe.")
@click.option("-R", "--recursive", is_flag=True, help="Folders below folders as well.")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--ignore-not-found", is_flag=True, help="Absent objects are no error.")
@store_options
def delete(
    store: StoreAddress,
    kind: str | None,
    names: tuple[str, ...],
    files: tuple[str, ...],
    namespace: str,
    *,
    recursive: bool,
    ignore_not_found: bool,
) -> None:
    """Remove objects by KIND and NAME, or those that files describe."""
    from cilium_core.resources.keys import identify

    if bool(files) == bool(kind) or (kind and not names):
        raise click.UsageError("Give KIND and NAME, or files with -f.")
    targets = [(_kind(kind), namespace, name) for name in names] if kind else []
    if files:
        documents = _read(files, recursive=recursive)
        targets = [identify(document.object) for document in documents]
    missing: list[str] = []

    async def work(source: Source, answered: Callable[[], None]) -> None:
        from cilium_core.errors import NotFoundError as Missing

        for target in targets:
            try:
                await source.delete(*target)
            except Missing as error:
                missing.append(str(error))
            else:
                click.echo(f"{_label(*target)} deleted")
            answered()

    with_source(store, work)
    if missing and not ignore_not_found:
        raise NotFoundError("\n  ".join(missing))


def _kind(word: str) -> Kind:
    from cilium_core.errors import InvalidError
    from cilium_core.resources.keys import kind_of

    try:
        return kind_of(word)
    except InvalidError as error:
        raise InputError(str(error)) from error
