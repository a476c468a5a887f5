"""Take runs from Postgres and move them forward."""
