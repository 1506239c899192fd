"""What the agent adds to a bare container, measured: one module for each part, each beside its baseline in the same run."""
