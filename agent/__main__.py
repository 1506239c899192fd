"""`python -m agent` is `dc-compute`."""

from agent.cli import main

if __name__ == "__main__":
    main()
