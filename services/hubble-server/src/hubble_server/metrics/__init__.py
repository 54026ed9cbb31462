"""Hubble's metrics: plugins that count flows, with labels that say between whom."""
