# SPDX-License-Identifier: Apache-2.0
"""Asks an HTTP server every 20 ms until interrupted, then prints how many questions failed."""

import signal
import sys
import time
import urllib.request


def main() -> None:
    """Ask until SIGINT."""
    asked = failed = 0
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGINT, stop)
    while running:
        asked += 1
        try:
            urllib.request.urlopen(f"http://{sys.argv[1]}/", timeout=2).read()
        except OSError:
            failed += 1
        time.sleep(0.02)
    print(f"{failed} of {asked} questions failed")


if __name__ == "__main__":
    main()
