"""Fans the flows of all nodes into one stream."""
