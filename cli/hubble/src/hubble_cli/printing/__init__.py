"""What `hubble` prints: flows, events and states in every output format."""
