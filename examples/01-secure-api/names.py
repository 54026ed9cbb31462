# SPDX-License-Identifier: Apache-2.0
"""A name server for a pod, and how to ask one.

names.py serve NAME=ADDRESS...   serve these names on UDP port 53, over both families
names.py ask SERVER NAME         print the answer's code and the addresses in it
"""

import socket
import sys

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL_S = 30
LIMIT_S = 3.0


def serve(zone: dict[str, str]) -> None:
    """Answer until killed."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.bind(("::", 53))
        while True:
            data, client = datagrams.recvfrom(4096)
            query = dns.message.from_wire(data)
            (question,) = query.question
            answer = dns.message.make_response(query)
            address = zone.get(question.name.to_text(omit_final_dot=True).lower())
            if address is None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif question.rdtype == dns.rdatatype.A:
                answer.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "A", address))
            datagrams.sendto(answer.to_wire(), client)


def ask(server: str, name: str) -> str:
    """Return what a server says of a name."""
    answer = dns.query.udp(dns.message.make_query(name, "A"), server, timeout=LIMIT_S)
    addresses = [record.to_text() for records in answer.answer for record in records]
    return " ".join([dns.rcode.to_text(answer.rcode()), *addresses])


def main() -> None:
    """Serve or ask."""
    command, *words = sys.argv[1:]
    if command == "serve":
        serve(dict(word.split("=", 1) for word in words))
    else:
        print(ask(*words))


if __name__ == "__main__":
    main()
