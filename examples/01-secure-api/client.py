# SPDX-License-Identifier: Apache-2.0
"""Tries to reach addresses from a pod: `client.py LABEL=KIND:PORT:ADDRESS...`.

KIND is http, which asks for /api/v1/public, or tcp. All are tried at once, for at most a second and
a half each. Prints one JSON object: by label, the line the server said, or null when it could not
be reached.
"""

import json
import socket
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

LIMIT_S = 1.5


def ask(target: str) -> str | None:
    """Return the first line the server says, None when there is no way to it."""
    kind, port, address = target.split(":", 2)
    try:
        if kind == "http":
            host = f"[{address}]" if ":" in address else address
            url = f"http://{host}:{port}/api/v1/public"
            with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
                line: bytes = answer.readline()
        else:
            with socket.create_connection((address, int(port)), timeout=LIMIT_S) as connection:
                line = connection.recv(200)
    except OSError:  # urllib.error.URLError is one
        return None
    return line.decode().strip()


def main() -> None:
    """Ask all targets in parallel."""
    targets = dict(item.split("=", 1) for item in sys.argv[1:])
    with ThreadPoolExecutor(max_workers=len(targets)) as pool:
        answers = pool.map(ask, targets.values())
    json.dump(dict(zip(targets, answers, strict=True)), sys.stdout)


if __name__ == "__main__":
    main()
