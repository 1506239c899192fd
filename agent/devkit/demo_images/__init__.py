"""Programs that run inside the images of the demo and of the tests. None of them knows the agent."""
