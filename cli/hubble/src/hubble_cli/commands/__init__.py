"""The commands of `hubble`, one module each. None of them parses flags or prints by itself."""
