"""Claim runs from Postgres and execute them."""
