"""What proxies saw: from the agent's records to flows in the ring."""
