"""Flows on disk: more of the past than the ring holds, for queries and for reading off-line."""
