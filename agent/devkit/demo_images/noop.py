"""Guest program: succeeds and leaves nothing."""
