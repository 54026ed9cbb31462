"""Connections to Hubble servers and the calls made over them.

One blocking channel per command; grpc is imported on first use, since half of what `hubble` does
needs no server. Flows are asked for in batches first, which our own servers and relays offer and
which is many times faster to receive; any other server answers that it has no such service, and
then gets the public call.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_core import traces

from hubble_cli.errors import HubbleError, RemoteError
from hubble_cli.settings import SERVER_TLS_PREFIX

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    import grpc
    from cilium.flows.v1 import explain_pb2, flows_pb2
    from google.protobuf.message import Message
    from observer import observer_pb2

    from hubble_cli.settings import Settings

API_VERSION = (1, 19)
"""The version of Hubble's API that this program speaks."""

_GET_BATCHES = "/cilium.flows.v1.FlowsService/GetFlowBatches"
_MAX_MESSAGE = 64 << 20
_HANDSHAKE_TIMEOUT_S = 10
_VERSION_HEADERS = {
    "hubble-relay-version": "Hubble Relay",
    "hubble-server-version": "Hubble Server",
}
_CODE_NAMES = {
    "OK": "OK",
    "CANCELLED": "Canceled",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}


class Connection:
    """A server, as the settings name it. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        # gRPC's own chatter would stand between the lines of a user's output.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        self.target = settings.text("server").removeprefix(SERVER_TLS_PREFIX)
        self._timeout_s = settings.duration_ns("request-timeout") / 1e9
        self._debug = settings.enabled("debug")
        self._metadata: tuple[tuple[str, str | bytes], ...] = ()
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.enable_http_proxy", 0),
        ]
        if username := settings.text("basic-auth-username"):
            if not settings.tls:
                raise HubbleError("basic authentication needs an encrypted connection: set --tls")
            pair = f"{username}:{settings.text('basic-auth-password')}".encode()
            header = f"Basic {base64.b64encode(pair).decode()}"
            self._metadata = (("authorization", header),)
        if settings.tls:
            credentials, tls_options = _tls(settings, self.target)
            self._channel = grpc.secure_channel(
                self.target, credentials, options=options + tls_options
            )
        else:
            self._channel = grpc.insecure_channel(self.target, options=options)
        self._channel = traces.traced(self._channel)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self, method: str, request: Message, answer: type[Any]) -> Any:
        """One question, one answer, within the request timeout. Raises RemoteError."""
        import grpc

        call = self._channel.unary_unary(
            method,
            request_serializer=_serialize,
            response_deserializer=answer.FromString,
        )
        try:
            response, ended = call.with_call(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise remote_error(error) from error
        self._check_version(ended)
        return response

    def stream(self, method: str, request: Message, answer: type[Any]) -> Iterator[Any]:
        """Answers until the server or the user ends it. Raises RemoteError."""
        import grpc

        call = self._channel.unary_stream(
            method,
            request_serializer=_serialize,
            response_deserializer=answer.FromString,
        )(request, metadata=self._metadata)
        checked = False
        try:
            for response in call:
                if not checked:
                    checked = True
                    self._check_version(call)
                yield response
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise remote_error(error) from error

    def exchange(self, method: str, answer: type[Any]) -> Callable[[Any], Any]:
        """A conversation: each call of the result sends one message and gives the answer."""
        send, answers = self.dialogue(method, answer)

        def ask(request: Any) -> Any:
            send(request)
            try:
                return next(answers)
            except StopIteration:
                raise RemoteError("the server ended the conversation") from None

        return ask

    def dialogue(
        self, method: str, answer: type[Any]
    ) -> tuple[Callable[[Any], None], Iterator[Any]]:
        """What sends a message, and the answers until the server ends. These raise RemoteError."""
        import queue

        import grpc

        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = self._channel.stream_stream(
            method,
            request_serializer=_serialize,
            response_deserializer=answer.FromString,
        )(iter(outgoing.get, None), metadata=self._metadata)

        def answers() -> Iterator[Any]:
            try:
                yield from call
            except grpc.RpcError as error:
                raise remote_error(error) from error
            finally:
                outgoing.put(None)

        return outgoing.put, answers()

    def flows(
        self, request: observer_pb2.GetFlowsRequest
    ) -> Iterator[list[observer_pb2.GetFlowsResponse]]:
        """Flows as they come, several at a time if possible. Raises RemoteError."""
        from observer import observer_pb2

        answers = self._batches(request)
        try:
            first = next(answers, None)
        except _NoBatchesError:
            for response in self.stream(
                "/observer.Observer/GetFlows", request, observer_pb2.GetFlowsResponse
            ):
                yield [response]
            return
        if first is not None:
            yield first
            yield from answers

    def counts(self, request: flows_pb2.AggregateFlowsRequest) -> flows_pb2.AggregateFlowsResponse:
        """Flows counted: by the server, or here where it cannot. Raises RemoteError."""
        import grpc
        from cilium.flows.v1 import flows_pb2

        method = "/cilium.flows.v1.FlowsService/AggregateFlows"
        try:
            counted: flows_pb2.AggregateFlowsResponse = self.ask(
                method, request, flows_pb2.AggregateFlowsResponse
            )
        except RemoteError as error:
            cause = error.__cause__
            if (
                not isinstance(cause, grpc.RpcError)
                or cause.code() is not grpc.StatusCode.UNIMPLEMENTED
            ):
                raise
            return self._counted_here(request)
        return counted

    def explanation(
        self, request: explain_pb2.ExplainFlowRequest
    ) -> explain_pb2.ExplainFlowResponse:
        """Why a flow had its verdict: what the server says, or the flow alone. RemoteError."""
        import grpc
        from cilium.flows.v1 import explain_pb2

        method = "/cilium.flows.v1.ExplanationService/ExplainFlow"
        try:
            told: explain_pb2.ExplainFlowResponse = self.ask(
                method, request, explain_pb2.ExplainFlowResponse
            )
        except RemoteError as error:
            cause = error.__cause__
            if not isinstance(cause, grpc.RpcError):
                raise
            if cause.code() is grpc.StatusCode.NOT_FOUND:
                raise RemoteError(cause.details() or "no such flow") from error
            if cause.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return self._explained_here(request)
        return told

    def _explained_here(
        self, request: explain_pb2.ExplainFlowRequest
    ) -> explain_pb2.ExplainFlowResponse:
        from cilium_core.flow_explanations import describe
        from observer import observer_pb2

        wanted = observer_pb2.GetFlowsRequest()
        wanted.CopyFrom(request.flows)
        # "the last" are those before now, whatever the range
        wanted.number = 0 if wanted.HasField("since") or wanted.HasField("until") else 1
        found: observer_pb2.GetFlowsResponse | None = None
        for response in self.stream(
            "/observer.Observer/GetFlows", wanted, observer_pb2.GetFlowsResponse
        ):
            if response.HasField("flow"):
                found = response
        if found is None:
            raise RemoteError("the server has no such flow, or no longer")
        answer = describe(found.flow, found.node_name)
        answer.notes.append("Policies were not asked: the server is of a kind that cannot tell.")
        return answer

    def _counted_here(
        self, request: flows_pb2.AggregateFlowsRequest
    ) -> flows_pb2.AggregateFlowsResponse:
        from cilium.flows.v1 import flows_pb2
        from cilium_core.flow_totals import Totals
        from observer import observer_pb2

        wanted = observer_pb2.GetFlowsRequest()
        wanted.CopyFrom(request.flows)
        wanted.number, wanted.first, wanted.follow = 0, False, False
        wanted.ClearField("field_mask")
        totals, budget = Totals(), flows_pb2.LossBudget()
        for response in self.stream(
            "/observer.Observer/GetFlows", wanted, observer_pb2.GetFlowsResponse
        ):
            if response.HasField("flow"):
                totals.count([response.flow], request.by)
            elif response.HasField("lost_events"):
                budget.lost_in_kernel += response.lost_events.num_events_lost
        totals.note(budget)
        return totals.answer(request.most, ())

    def _batches(
        self, request: observer_pb2.GetFlowsRequest
    ) -> Iterator[list[observer_pb2.GetFlowsResponse]]:
        import grpc
        from cilium.flows.v1 import flows_pb2
        from observer import observer_pb2

        parse = observer_pb2.GetFlowsResponse.FromString
        try:
            for batch in self.stream(_GET_BATCHES, request, flows_pb2.FlowBatch):
                yield [parse(encoded) for encoded in batch.responses]
        except RemoteError as error:
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() in (
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.PERMISSION_DENIED,
            ):
                raise _NoBatchesError from error
            raise

    def _check_version(self, call: Any) -> None:
        """Tell the user when the other side is newer."""
        headers = dict(call.initial_metadata() or ())
        for header, title in _VERSION_HEADERS.items():
            found = re.match(r"v?(\d+)\.(\d+)", str(headers.get(header, "")))
            if found is None:
                if self._debug:
                    print(f"debug: no {header} in the answer", file=sys.stderr)
            elif (int(found[1]), int(found[2])) > API_VERSION:
                ours = ".".join(map(str, API_VERSION))
                print(
                    f"warning: this program speaks Hubble {ours}, {title} is {headers[header]};"
                    " a matching or newer hubble is recommended",
                    file=sys.stderr,
                )


class _NoBatchesError(Exception):
    """The server has only the public call."""


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def remote_error(error: grpc.RpcError) -> RemoteError:
    """What to tell the user: the bare text of servers' own errors, else code and text."""
    code = error.code().name
    if code == "UNKNOWN":
        return RemoteError(error.details() or "")
    return RemoteError(
        f"rpc error: code = {_CODE_NAMES.get(code, code)} desc = {error.details() or ''}"
    )


def _tls(settings: Settings, target: str) -> tuple[grpc.ChannelCredentials, list[tuple[str, Any]]]:
    """Credentials, and channel options that go with them. Raises HubbleError."""
    import grpc

    authorities = None
    if files := settings.strings("tls-ca-cert-files"):
        authorities = b"\n".join(_pem(name) for name in files)
    key = certificate = None
    if settings.text("tls-client-cert-file"):
        certificate = _read(settings.text("tls-client-cert-file"))
        key = _read(settings.text("tls-client-key-file"))
    options: list[tuple[str, Any]] = []
    if name := settings.text("tls-server-name"):
        options.append(("grpc.ssl_target_name_override", name))
    if settings.enabled("tls-allow-insecure"):
        authorities, seen_name = _whatever_is_served(target, settings.text("tls-server-name"))
        options = [("grpc.ssl_target_name_override", seen_name)]
    return grpc.ssl_channel_credentials(authorities, key, certificate), options


def _whatever_is_served(target: str, server_name: str) -> tuple[bytes, str]:
    """Trust the very certificate that the server shows now, under a name that it bears.

    gRPC has no switch that turns verification off. Raises RemoteError.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    shown, _ = _handshake(target, server_name, context)
    certificate = ssl.DER_cert_to_PEM_cert(shown)
    # A second time with that certificate trusted: only then does Python decode its names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    _, decoded = _handshake(target, server_name, context)
    borne = [value for kind, value in decoded.get("subjectAltName", ()) if kind == "DNS"]
    name = borne[0].replace("*", "any") if borne else server_name or target.rpartition(":")[0]
    return certificate.encode(), name


def _handshake(
    target: str, server_name: str, context: ssl.SSLContext
) -> tuple[bytes, dict[str, Any]]:
    """The certificate that a server shows, raw and decoded. Raises RemoteError."""
    import socket

    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_HANDSHAKE_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=server_name or host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
            decoded = secure.getpeercert()
    except (OSError, ValueError) as error:
        raise RemoteError(f"cannot reach {target}: {error}") from error
    if shown is None:
        raise RemoteError(f"{target} shows no certificate")
    return shown, dict(decoded or {})


def _pem(name: str) -> bytes:
    content = _read(name)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise HubbleError(f"cannot process cert '{name}': must be a PEM encoded certificate")
    return content


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise HubbleError(
            f"cannot load cert '{name}': open {name}: {(error.strerror or '').lower()}"
        ) from error
