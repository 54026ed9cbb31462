"""The whole cluster, in a lab, with real traffic."""
