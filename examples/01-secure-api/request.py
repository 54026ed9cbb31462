# SPDX-License-Identifier: Apache-2.0
"""Makes one HTTP request: `request.py METHOD URL [HEADER: VALUE]...`; prints status and answer.

Where nobody answers, it says so after a second and a half.
"""

import http.client
import sys
import urllib.parse

CONNECT_LIMIT_S = 1.5
LIMIT_S = 5.0


def main() -> None:
    """Ask, and print the status with the first line of the body."""
    method, url, *headers = sys.argv[1:]
    fields = dict(header.split(": ", 1) for header in headers)
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=CONNECT_LIMIT_S)
    try:
        connection.connect()
    except OSError as error:
        print("no answer:", error.strerror or error)
        return
    connection.sock.settimeout(LIMIT_S)
    connection.request(method, place.path, headers=fields)
    answer = connection.getresponse()
    print(answer.status, answer.readline().decode().strip())


if __name__ == "__main__":
    main()
