"""The operator of a cluster: pod CIDRs, identity garbage collection, clean-up."""
