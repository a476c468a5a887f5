"""The HTTP front door: requests become rows, rows become event streams."""

from gateway.serve import ServeOptions, StoreAddress, WorkflowReference, create_serve_app

__all__ = ["ServeOptions", "StoreAddress", "WorkflowReference", "create_serve_app"]
