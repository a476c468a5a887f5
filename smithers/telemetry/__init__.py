"""Names of logs, metrics and spans, and how they leave the process."""
