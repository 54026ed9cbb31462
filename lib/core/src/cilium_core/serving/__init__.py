"""Servers of a service: gRPC (`grpc_server`), small HTTP (`http_server`), sockets and signals.

Nothing is imported here, so that a process pays only for the kind of server it runs.
"""
