"""cilium-dns-proxy: judges what pods ask DNS for, and tells the agent which addresses names have."""
