"""The nouns: frozen values and pure functions. No I/O, no clock."""
