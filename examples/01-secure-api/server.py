# SPDX-License-Identifier: Apache-2.0
"""A small server for a pod: `server.py http NAME PORT` or `server.py tcp NAME PORT`.

Listens on IPv4 and IPv6. The http kind answers every request, the tcp kind greets and hangs up;
both say who they are.
"""

import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class DualStackServer(socketserver.ThreadingTCPServer):
    """Accepts both families on one socket."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind with the IPv6-only option off."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def http_handler(name: str) -> type[BaseHTTPRequestHandler]:
    """Return a handler that answers every request with the name."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = f"{name} says hello\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - named as the base class wants it

        def log_message(self, *_: object) -> None:
            """Say nothing: flows tell who asked."""

    return Handler


def tcp_handler(name: str) -> type[socketserver.BaseRequestHandler]:
    """Return a handler that greets with the name."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(f"{name} says hello\n".encode())

    return Handler


def main() -> None:
    """Serve until killed."""
    kind, name, port = sys.argv[1:]
    handler = {"http": http_handler, "tcp": tcp_handler}[kind](name)
    with DualStackServer(("::", int(port)), handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
