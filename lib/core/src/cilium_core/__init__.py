"""Labels, identities, the policy model, the key-value store, resources, telemetry and TLS."""
