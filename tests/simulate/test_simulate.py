"""The simulation itself: it is the same every time, and it finds what is broken."""
