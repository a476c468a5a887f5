"""The HTTP front door: requests become rows, rows become event streams."""
