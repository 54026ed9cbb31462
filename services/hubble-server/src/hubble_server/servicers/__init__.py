"""gRPC to domain and back, one module for each service."""
