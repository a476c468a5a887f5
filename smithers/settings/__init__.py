"""The commands' settings: flags over environment over defaults, read once into a frozen value.

All invalid ones are reported together, by the name under which they were given; values that may be secret are never quoted.
"""

from smithers.settings.limits import Limits
from smithers.settings.options import DEFAULT_URL, ClientOptions, ServerOptions
from smithers.settings.reading import InvalidSettings, read_client_options, read_server_options
from smithers.settings.table import CLIENT_SETTINGS, SETTINGS, Setting

__all__ = [
    "CLIENT_SETTINGS",
    "DEFAULT_URL",
    "SETTINGS",
    "ClientOptions",
    "InvalidSettings",
    "Limits",
    "ServerOptions",
    "Setting",
    "read_client_options",
    "read_server_options",
]
