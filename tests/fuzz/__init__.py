"""Policies at random, judged three times: by the oracle, by the resolver and by the kernel."""
