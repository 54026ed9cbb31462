"""The Kafka proxy: a transparent proxy that lets requests through or answers them with a refusal.

Reading order: `schemas` and `encoding` (the protocol), `requests` (what a request asks for),
`deciding` (whether it may), `refusing` (what it is answered when it may not), `negotiating` (which
versions clients are offered), `connections` (one client and its broker), `ports` and `app`.
"""
