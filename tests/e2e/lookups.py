"""Names in the end-to-end tests; runs as a program inside pods (standard library only).

lookups.py serve ZONES                   a name server, until killed; the zones are JSON
lookups.py ask SERVER NAME [TYPE] [tcp]  JSON: what the server says
lookups.py load SERVER NAME SECONDS [PATIENCE]   one lookup after the other, each given up after
                                         PATIENCE seconds; JSON: failures, longest wait
lookups.py visit SERVER PORT NAME...     resolve each, connect at once; JSON: how each went
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

import names  # beside this program

LIMIT_S = 3.0
RETRY_S = 0.1


def ask(server: str, name: str, kind: str = "A", tcp: str = "", limit_s: float = LIMIT_S) -> str:
    """What a server says of a name; `silence` when it says nothing."""
    question = names.query(name, kind)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            sock.settimeout(limit_s)
            sock.connect((server, 53))
            if not tcp:
                sock.send(question)
                return names.told(question, sock.recv(65536))
            sock.sendall(len(question).to_bytes(2, "big") + question)
            with sock.makefile("rb") as stream:
                return names.told(question, stream.read(int.from_bytes(stream.read(2), "big")))
    except OSError:
        return "silence"


def load(server: str, name: str, seconds: float, patience: float = RETRY_S) -> dict[str, Any]:
    """Look a name up again and again, as a resolver does that asks again soon."""
    end, last, longest, answered, failed = time.monotonic() + seconds, time.monotonic(), 0.0, 0, 0
    while (now := time.monotonic()) < end:
        said = ask(server, name, limit_s=patience)
        if said.startswith("NOERROR "):
            answered += 1
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        else:
            failed += 1
            time.sleep(max(0.0, now + patience - time.monotonic()))
    return {"answered": answered, "failed": failed, "longest_s": longest}


def visit(server: str, port: int, *wanted: str) -> dict[str, str]:
    """Connect to what each name stands for the moment it is known."""
    outcomes = {}
    for name in wanted:
        said = ask(server, name)
        code, _, address = said.partition(" ")
        if code != "NOERROR" or not address:
            outcomes[name] = said
            continue
        try:
            # The first packet must pass: a second one is sent after a second only.
            socket.create_connection((address, port), timeout=0.9).close()
            outcomes[name] = "connected"
        except OSError as error:
            outcomes[name] = str(error)
    return outcomes


def main() -> None:
    """Run a command."""
    match sys.argv[1:]:
        case ["serve", zones]:

            async def serve() -> None:
                await names.serve(json.loads(zones))
                print("serving", flush=True)
                await asyncio.Event().wait()

            asyncio.run(serve())
        case ["ask", server, name, *rest]:
            print(json.dumps(ask(server, name, *rest)))
        case ["load", server, name, *numbers]:
            print(json.dumps(load(server, name, *map(float, numbers))))
        case ["visit", server, port, *wanted]:
            print(json.dumps(visit(server, int(port), *wanted)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
