"""Exporters: flows written to files as lines of JSON, as Hubble writes them."""
