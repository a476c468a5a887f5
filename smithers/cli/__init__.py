"""The `smithers` command."""
