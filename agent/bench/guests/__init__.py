"""Programs that run inside the bench's containers. Nothing of the agent is in there."""
