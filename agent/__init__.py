"""dc-compute: the agent that runs signed machine-learning orders on a hospital's storage host."""

__version__ = "0.1.0"
