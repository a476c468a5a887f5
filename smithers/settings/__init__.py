"""What the commands are told: flags over environment over defaults, read once into a frozen value.

Every bad one is reported at once, by the name under which it was given; what may hold a secret is never quoted.
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
