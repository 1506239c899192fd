"""The bench: what the agent adds to a bare container, each figure beside its baseline in the same run. docs/performance.md."""
