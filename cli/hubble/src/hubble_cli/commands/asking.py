"""`hubble status`, `list`, `watch` and `reflect`: questions to a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hubble_cli.arguments import Command, Flag, Section
from hubble_cli.errors import HubbleError, RemoteError, UsageError
from hubble_cli.settings import SERVER, Settings

if TYPE_CHECKING:
    from hubble_cli.arguments import Parsed

_SERVING = 1
_HEALTH_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_UNINTERESTING = (
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
    "grpc.health.v1.Health",
)


def _settings(parsed: Parsed) -> Settings:
    settings = Settings(parsed)
    settings.check()
    return settings


def status(parsed: Parsed) -> None:
    """Tell whether the server is well, and how full it is."""
    from grpc_health.v1 import health_pb2
    from observer import observer_pb2

    from hubble_cli.connecting import Connection
    from hubble_cli.printing.outputs import Format, choose
    from hubble_cli.printing.states import server_status

    name = str(parsed.values.get("output", "compact"))
    with Connection(_settings(parsed)) as connection:
        try:
            health = connection.ask(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest(service="hubble.server.Observer"),
                health_pb2.HealthCheckResponse,
            )
        except RemoteError as error:
            raise HubbleError(f"failed getting status: {_full(error)}") from error
        healthy = health.status == _SERVING
        if name == "compact":
            state = _HEALTH_STATES.get(health.status, str(health.status))
            text = "Ok" if healthy else f"Unavailable: {state}"
            sys.stdout.write(f"Healthcheck (via {connection.target}): {text}\n")
        if not healthy:
            raise HubbleError("not healthy")
        try:
            answer = connection.ask(
                "/observer.Observer/ServerStatus",
                observer_pb2.ServerStatusRequest(),
                observer_pb2.ServerStatusResponse,
            )
        except RemoteError as error:
            raise HubbleError(f"failed to get hubble server status: {_full(error)}") from error
    output = choose(name)
    text = server_status(answer, output)
    sys.stdout.write(text if output is Format.JSON else _escape(text))


def _full(error: RemoteError) -> str:
    """With the code, also where the text alone would do."""
    import grpc

    cause = error.__cause__
    if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNKNOWN:
        return f"rpc error: code = Unknown desc = {error}"
    return str(error)


def _escape(text: str) -> str:
    from hubble_cli.terminals import Painter

    return Painter(enabled=False).escape(text)


def list_nodes(parsed: Parsed) -> None:
    """List the nodes behind a relay."""
    from observer import observer_pb2

    from hubble_cli.printing.states import nodes

    answer = _list(
        parsed,
        "/observer.Observer/GetNodes",
        observer_pb2.GetNodesRequest(),
        observer_pb2.GetNodesResponse,
    )
    sys.stdout.write(nodes(answer.nodes, str(parsed.values.get("output", "table"))))


def list_namespaces(parsed: Parsed) -> None:
    """List the namespaces that flows were seen in."""
    from observer import observer_pb2

    from hubble_cli.printing.states import namespaces

    answer = _list(
        parsed,
        "/observer.Observer/GetNamespaces",
        observer_pb2.GetNamespacesRequest(),
        observer_pb2.GetNamespacesResponse,
    )
    sys.stdout.write(namespaces(answer.namespaces, str(parsed.values.get("output", "table"))))


def _list(parsed: Parsed, method: str, request: Any, answer: type[Any]) -> Any:
    from hubble_cli.connecting import Connection

    with Connection(_settings(parsed)) as connection:
        try:
            return connection.ask(method, request, answer)
        except RemoteError as error:
            raise RemoteError(_full(error)) from error


def watch_peers(parsed: Parsed) -> None:
    """Print changes of the peers that a node server knows."""
    from peer import peer_pb2

    from hubble_cli.connecting import Connection
    from hubble_cli.printing.states import peer_change

    with Connection(_settings(parsed)) as connection:
        try:
            for change in connection.stream(
                "/peer.Peer/Notify", peer_pb2.NotifyRequest(), peer_pb2.ChangeNotification
            ):
                sys.stdout.write(_escape(peer_change(change)))
                sys.stdout.flush()
        except KeyboardInterrupt:
            pass


def reflect(parsed: Parsed) -> None:
    """Print the file descriptors that a server's API is made of."""
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2

    from hubble_cli import jsonlines
    from hubble_cli.connecting import Connection

    seen: set[str] = set()
    with Connection(_settings(parsed)) as connection:
        ask = connection.exchange(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionResponse,
        )

        def show(request: Any) -> None:
            answer = ask(request)
            if answer.HasField("error_response"):
                raise RemoteError(f"unexpected response: {answer.error_response.error_message}")
            for encoded in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
                if file.name in seen:
                    continue
                seen.add(file.name)
                sys.stdout.write(jsonlines.encode(file) + "\n")
                for needed in file.dependency:
                    if needed not in seen:
                        show(reflection_pb2.ServerReflectionRequest(file_by_filename=needed))

        listed = ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        for service in listed.list_services_response.service:
            if service.name not in _UNINTERESTING:
                show(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.name))


def group(parsed: Parsed) -> None:
    """A word is missing: show what there is."""
    from hubble_cli.helping import render

    if parsed.operands:
        raise UsageError(f'unknown command "{parsed.operands[0]}"')
    sys.stdout.write(render(parsed.path))


def _output(default: str, *choices: str) -> Section:
    text = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Section("Formatting", (Flag("output", "string", text, "o", default, choices=choices),))


_LISTING = _output("table", "json", "table", "wide")
STATUS = Command(
    "status",
    "Display the state of a Hubble server",
    status,
    (_output("compact", "compact", "dict", "json", "table"), SERVER),
)
LIST = Command(
    "list",
    "List Hubble objects",
    group,
    (SERVER,),
    (
        Command("nodes", "List nodes", list_nodes, (_LISTING, SERVER), aliases=("node",)),
        Command(
            "namespaces", "List namespaces with recent flows", list_namespaces, (_LISTING, SERVER)
        ),
    ),
)
WATCH = Command(
    "watch",
    "Watch Hubble objects",
    group,
    (SERVER,),
    (
        Command(
            "peers", "Watch the peers of a node server", watch_peers, (SERVER,), aliases=("peer",)
        ),
    ),
    aliases=("w",),
    hidden=True,
)
REFLECT = Command(
    "reflect", "Print the API of a server, by gRPC reflection", reflect, (SERVER,), hidden=True
)
