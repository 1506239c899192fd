"""The bench: what this agent adds to a bare container, each figure beside its baseline in the same run."""
