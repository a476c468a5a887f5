"""The HTTP front door: requests become rows, rows become event streams."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.run_site import ServeOptions, StoreAddress, WorkflowReference, create_serve_app

__all__ = ["ServeOptions", "StoreAddress", "WorkflowReference", "create_serve_app"]


def __getattr__(name: str) -> Any:
    """Import the public names lazily: a caller that needs a part of the gateway does not load all of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("gateway.run_site"), name)
