"""Why a flow had its verdict, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2
from cilium_core.flow_questions import sides_of
from cilium_core.verdict_texts import direction_lines, protocol_text

from hubble_cli.printing.flows import FlowPrinter
from hubble_cli.printing.outputs import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium.flows.v1 import explain_pb2
    from flow import flow_pb2

    from hubble_cli.terminals import Painter

_CHOICES = {
    agent_pb2.SERVICE_CHOICE_RANDOM: "any of its backends, with equal chances",
    agent_pb2.SERVICE_CHOICE_MAGLEV: "an entry of the Maglev table",
    agent_pb2.SERVICE_CHOICE_AFFINITY: "kept by session affinity",
    agent_pb2.SERVICE_CHOICE_CONNECTION: "kept by its connection",
    agent_pb2.SERVICE_CHOICE_REFUSED: "nobody",
    agent_pb2.SERVICE_CHOICE_NOT_TRANSLATED: "nobody else: it is not translated there",
}


def show(answer: explain_pb2.ExplainFlowResponse, painter: Painter) -> str:
    """The whole answer, a paragraph for each thing."""
    parts = [
        _flow_lines(answer, painter),
        _drop_lines(answer),
        _service_lines(answer),
        _policy_lines(answer, painter),
        _note_lines(answer),
    ]
    blocks = ["".join(f"{line}\n" for line in lines) for lines in map(list, parts) if lines]
    return painter.escape("\n".join(blocks))


def _flow_lines(answer: explain_pb2.ExplainFlowResponse, painter: Painter) -> Iterator[str]:
    flow = answer.flow
    yield _one_line(flow, painter)
    node = f" on {answer.node_name}" if answer.node_name else ""
    yield f"  {answer.conclusion}"
    yield f"  seen{node}, uuid {flow.uuid}"
    client, server = sides_of(flow)
    for word, side in (("from", client), ("to", server)):
        identity = f"identity {side.endpoint.identity}" if side.endpoint.identity else "no identity"
        at = f", {side.address}" if side.address != side.name else ""
        yield f"  {word:<5}{side.name}{at}: {identity}"
        if side.endpoint.labels:
            yield f"       {', '.join(side.endpoint.labels)}"
    if flow.IP.source_xlated:
        yield f"  sent on as {flow.IP.source_xlated}, in the place of {flow.IP.source}"
    if answer.HasField("counts"):
        packets = f"{answer.counts.packets:,} packet{'s' if answer.counts.packets != 1 else ''}"
        yield (
            f"  {packets}, {answer.counts.bytes:,} bytes since the last flow of this connection "
            "and direction"
        )
    for line in _deciding(flow):
        yield f"  {line}"


def _one_line(flow: flow_pb2.Flow, painter: Painter) -> str:
    """The flow as `hubble observe` shows it."""
    from observer import observer_pb2

    lines: list[str] = []

    class Kept:
        def write(self, text: str, /) -> None:
            lines.append(text)

        def flush(self) -> None:
            pass

    printer = FlowPrinter(
        Options(time_format="RFC3339Milli", colour=painter.enabled), Kept(), Kept()
    )
    printer.print(observer_pb2.GetFlowsResponse(flow=flow, node_name=flow.node_name))
    printer.streams.close()
    return "".join(lines).rstrip("\n")


def _deciding(flow: flow_pb2.Flow) -> Iterator[str]:
    """The policies that were behind the verdict when it fell."""
    for field, text in (
        ("egress_denied_by", "denied at egress then by"),
        ("ingress_denied_by", "denied at ingress then by"),
        ("egress_allowed_by", "allowed at egress then by"),
        ("ingress_allowed_by", "allowed at ingress then by"),
    ):
        for policy in getattr(flow, field):
            name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
            revision = f", revision {policy.revision}" if policy.revision else ""
            yield f"{text} {policy.kind} {name}{revision}"


def _drop_lines(answer: explain_pb2.ExplainFlowResponse) -> Iterator[str]:
    if not answer.HasField("drop"):
        return
    drop, file = answer.drop, answer.flow.file
    at = f", {file.name}:{file.line}" if file.name else ""
    yield f"Drop reason: {drop.text} (code {drop.code}{at})"
    yield f"  {drop.meaning}"
    if drop.remedy:
        yield f"  What to do: {drop.remedy}"


def _service_lines(answer: explain_pb2.ExplainFlowResponse) -> Iterator[str]:
    client, server = sides_of(answer.flow)
    asked = answer.translation.service or "/".join(
        filter(None, (server.service.namespace, server.service.name))
    )
    translated = answer.HasField("translation")
    if not (asked or translated or answer.frontends or answer.HasField("choice")):
        return
    if translated:
        yield (
            f"Service: {asked or 'one that is gone'}, asked at "
            f"{_address(answer.translation.frontend)}, translated at the client's socket"
        )
        yield f"  {client.name} got {_host(server.address)}:{server.port}"
    if answer.HasField("choice"):
        one = answer.choice.service
        if not translated:
            at = f"{_host(server.address)}:{server.port}"
            yield f"Service: {one.namespace}/{one.name}, asked at {at}"
        chosen = _CHOICES.get(answer.choice.choice, "")
        if answer.choice.HasField("backend"):
            chosen = f"{_address(answer.choice.backend.address)}, {chosen}"
        yield f"  {client.name} would now be served by {chosen}"
        for step in answer.choice.steps:
            yield f"    {step}"
        for candidate in answer.choice.candidates:
            mark = "+" if candidate.possible else "-"
            note = f": {candidate.message}" if candidate.message else ""
            state = f"{_address(candidate.backend.address)} ({candidate.backend.state})"
            yield f"    {mark} {state}{note}"
        return
    if not translated:
        yield f"Service: {asked}"
    for frontend in answer.frontends:
        served = [
            f"{_address(one.address)} ({one.state})"
            + (" <- this one" if (one.address.ip, one.address.port) == server[1:3] else "")
            for one in frontend.backends
        ]
        text = ", ".join(served) or "no backends"
        yield f"  {frontend.type} {_address(frontend.frontend)}: {text}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _address(at: agent_pb2.ServiceAddress) -> str:
    host = _host(at.ip)
    return f"{host}:{at.port}/{protocol_text(at.protocol)}" if at.port else f"{host}:*"


def _policy_lines(answer: explain_pb2.ExplainFlowResponse, painter: Painter) -> Iterator[str]:
    if not answer.HasField("policy"):
        return

    def paint(text: str, colour: str) -> str:
        return painter.green(text) if colour == "green" else painter.red(text)

    policy = answer.policy
    yield f"Policies of now (revision {policy.revision}):"
    client, server = sides_of(answer.flow)
    for found, side in ((policy.egress, client), (policy.ingress, server)):
        for line in direction_lines(found, side.name, paint):
            yield f"  {line}"
    for why in policy.unverified:
        yield f"  not verified: {why}"


def _note_lines(answer: explain_pb2.ExplainFlowResponse) -> Iterator[str]:
    for note in answer.notes:
        yield f"note: {note}"
    for name in answer.missing_nodes:
        yield f"not seen: {name} did not answer, and may have a newer such flow"
