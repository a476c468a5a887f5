"""Workflow source by content: read, hashed, stored, loaded."""
