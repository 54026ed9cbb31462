"""What the relay's clients can call: gRPC to domain and back, nothing else."""
