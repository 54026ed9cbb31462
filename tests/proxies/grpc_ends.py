"""Both ends of a gRPC call, as programs, since gRPC makes its sockets itself.

serve PORT            answers every method with its name
call TARGET METHOD…   calls methods over one channel; prints [code, details, answer] of each
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent import futures
from pathlib import Path

import grpc


class _Anything(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(lambda request, _: method.encode() + request)


def serve(port: str) -> None:
    """Serve until SIGTERM."""
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[_Anything()])
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)


def call(target: str, methods: list[str]) -> None:
    """Call methods; `CA` in the environment names a file for TLS, `AUTHORITY` the server."""
    options = [("grpc.default_authority", os.environ.get("AUTHORITY", "grpc.example.com"))]
    if ca := os.environ.get("CA"):
        credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
        options.append(("grpc.ssl_target_name_override", os.environ["AUTHORITY"]))
        channel = grpc.secure_channel(target, credentials, options)
    else:
        channel = grpc.insecure_channel(target, options)
    results = []
    for method in methods:
        try:
            answer = channel.unary_unary(method)(b"!", timeout=5)
            results.append(["OK", "", answer.decode()])
        except grpc.RpcError as error:
            results.append([error.code().name, error.details(), ""])
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serve(sys.argv[2])
    else:
        call(sys.argv[2], sys.argv[3:])
