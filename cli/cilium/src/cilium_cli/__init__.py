"""The cilium command line and the lab."""
