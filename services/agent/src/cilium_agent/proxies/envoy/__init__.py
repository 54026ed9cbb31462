"""Envoy: its configuration from redirects, its access log, its life.

    options.py      what can be set
    rules.py        HTTP rules → conditions on a request
    matching.py     rules' texts and expressions → matchers, the cheapest that mean the same
    routes.py       HTTP rules → routes: what is allowed, and what is answered with 403
    mutations.py    header matches with a mismatch action → filters that change headers
    mismatches.py   those that are only reported
    listeners.py    a redirect and its port → a listener
    clusters.py     where requests go on: to where the client wanted, under which address and mark
    tls.py          TLS contexts, and the secrets they use
    resources.py    all of it for a set of redirects, as a value
    bootstrap.py    what Envoy is started with
    discovery.py    the state of one xDS conversation, without I/O
    serving.py      the gRPC services that Envoy calls: discovery and access log
    logging.py      what is logged, and how much of it
    accesslogs.py   access log entries → records
    counting.py     Envoy's own counters, which know no limit
    listening.py    whether Envoy listens already
    backend.py      the backend: resources, conversation, process

Envoy knows no policy and no identity. Each distinct redirect has a listener of its own, and the
data plane sends a connection to the one that enforces what policy says about it.
"""
