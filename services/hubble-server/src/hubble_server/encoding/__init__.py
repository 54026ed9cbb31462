"""Protobuf bytes of flows, put together from cached pieces; and the texts in them."""
