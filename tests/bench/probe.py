"""Datagrams at a steady rate, to see to the millisecond when a policy takes effect.

    probe.py send ADDRESS PORT      one datagram a millisecond with the time of sending
    probe.py receive PORT           on SIGTERM print the times of sending of what arrived, as JSON

Times are nanoseconds of the monotonic clock, which all namespaces of a machine share. Standard
library only, as it runs inside pods.
"""

import contextlib
import json
import signal
import socket
import sys
import time

INTERVAL_S = 0.001


def send(address: str, port: int) -> None:
    """Send for ever."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.connect((address, port))
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            out.send(time.monotonic_ns().to_bytes(8, "big"))
        time.sleep(INTERVAL_S)


def receive(port: int) -> None:
    """Receive until told to stop."""
    inbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inbound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    inbound.bind(("0.0.0.0", port))
    seen: list[int] = []

    def stop(*_: object) -> None:
        json.dump(seen, sys.stdout)
        sys.stdout.flush()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    while True:
        seen.append(int.from_bytes(inbound.recv(8), "big"))


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]))
    else:
        receive(int(sys.argv[2]))
