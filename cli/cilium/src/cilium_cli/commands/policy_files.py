# SPDX-License-Identifier: Apache-2.0
"""`cilium policy validate`: checks files, with neither a cluster nor an agent."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from cilium_cli.errors import InputError
from cilium_cli.outputs import emit, output_option

if TYPE_CHECKING:
    from cilium_core.policy.validating import CheckedObject, Remark


@click.command("validate", short_help="Check policy files offline.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-R", "--recursive", is_flag=True, help="Folders below folders as well.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option that the cluster has, such as enable-node-selector-labels=true.",
)
@click.option(
    "--lenient", is_flag=True, help="Warn of unknown fields where they cannot restrict anything."
)
@output_option
def validate(
    output: str,
    files: tuple[str, ...],
    settings: tuple[str, ...],
    *,
    recursive: bool,
    lenient: bool,
) -> None:
    """Check policies and Cilium's other objects in files, in folders, or (-) on standard input.

    Needs no cluster. Every problem is told as FILE:LINE: FIELD: MESSAGE. Older forms that are still
    understood are warnings; objects of other kinds are skipped.

    Exits with 1 if a policy would be refused, and with 2 if the command line is wrong.
    """
    from cilium_core.errors import InvalidError
    from cilium_core.policy.options import PolicyOptions, with_settings
    from cilium_core.policy.validating import check_texts

    from cilium_cli.files import texts

    try:
        options = with_settings(PolicyOptions(lenient_fields=lenient), settings)
    except InvalidError as error:
        raise click.BadParameter(str(error), param_hint="--set") from error
    named = (text for name in files for text in texts(name, recursive=recursive))
    found = list(check_texts(named, options))
    counts = _counts(found)
    document = {"objects": [_plain(item) for item in found], "summary": counts}
    emit(output, document, lambda: _render(found, counts))
    refused = counts["invalid"] + counts["unsupported"]
    if refused:
        raise InputError(f"{refused} of {refused + counts['valid']} would be refused")
    if not found:
        raise InputError(f"{', '.join(files)}: no object in it")


def _counts(found: list[CheckedObject]) -> dict[str, int]:
    outcomes = Counter(item.outcome.value for item in found)
    counts = {name: outcomes[name] for name in ("valid", "invalid", "unsupported", "skipped")}
    return {**counts, "warnings": sum(len(item.warnings) for item in found)}


def _render(found: list[CheckedObject], counts: dict[str, int]) -> None:
    for item in found:
        for remark in item.errors:
            click.echo(_line(item, remark, click.style("error", fg="red")))
        for remark in item.warnings:
            click.echo(_line(item, remark, click.style("warning", fg="yellow")))
        if not item.errors:
            note = " (not checked)" if item.outcome.value == "skipped" else ""
            click.echo(f"{item.source}:{item.line}: {item.outcome.value}: {item.label}{note}")
    click.echo(", ".join(f"{number} {name}" for name, number in counts.items() if number))


def _line(item: CheckedObject, remark: Remark, word: str) -> str:
    return f"{item.source}:{remark.line}: {word}: {item.label}: {remark}"


def _plain(item: CheckedObject) -> dict[str, Any]:
    return {
        "file": item.source,
        "line": item.line,
        "kind": item.kind,
        "name": item.name,
        "outcome": item.outcome.value,
        "errors": [_plain_remark(remark) for remark in item.errors],
        "warnings": [_plain_remark(remark) for remark in item.warnings],
    }


def _plain_remark(remark: Remark) -> dict[str, Any]:
    return {"line": remark.line, "field": remark.path, "message": remark.message}
