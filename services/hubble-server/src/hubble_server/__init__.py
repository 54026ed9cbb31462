"""Turns the event ring of a node into flows and serves them."""
