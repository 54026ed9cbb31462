"""The agent of a node: owns eBPF programs, maps, endpoints and policy."""
