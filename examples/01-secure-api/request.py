# SPDX-License-Identifier: Apache-2.0
"""Makes one HTTP request: `request.py METHOD URL [HEADER: VALUE]...`; prints status and answer."""

import http.client
import sys
import urllib.parse

LIMIT_S = 5.0


def main() -> None:
    """Ask, and print the status with the first line of the body."""
    method, url, *headers = sys.argv[1:]
    fields = dict(header.split(": ", 1) for header in headers)
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=LIMIT_S)
    connection.request(method, place.path, headers=fields)
    answer = connection.getresponse()
    print(answer.status, answer.readline().decode().strip())


if __name__ == "__main__":
    main()
