"""The hubble command line."""
