"""Endpoints: what a pod is to this node, from its first request to its last."""
