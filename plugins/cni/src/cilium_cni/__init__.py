"""The CNI plugin; standard library only, so that it starts fast."""
