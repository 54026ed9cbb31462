"""What the agent tells about addresses, identities, rules and nodes, as of now and as of then."""
