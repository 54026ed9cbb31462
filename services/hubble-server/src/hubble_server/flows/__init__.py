"""Flows as columns: made from kernel events, kept in a ring, handed out in order."""
