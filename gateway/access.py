"""Authorization: tokens, their scopes, and, without tokens, which pages may talk to a loopback port.

The credential is checked before the path and before any byte of the body is read. Tokens are compared as
SHA-256 digests in constant time. The tokens file is reloaded when it changes; an unreadable version leaves the previous
one in force, a missing file leaves no tokens.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from multidict import CIMultiDictProxy

from gateway.bodies import parse_json
from gateway.errors import Forbidden, InvalidJson, Unauthorized
from gateway.settings import GatewaySettings
from smithers.complaints import Complaint
from smithers.defaults import LOOPBACK_NAMES
from smithers.errors import SmithersError
from smithers.ids import SERVERS_OWN

LOG: Final = structlog.get_logger(__name__)
CHECK_FILE_S: Final = 1.0
EVERYTHING: Final = "*"
TOKEN_FIELDS: Final = frozenset({"sha256", "user", "scopes", "expiresAt"})


class Scope(StrEnum):
    """The permission that a route requires."""

    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    APPROVALS_DECIDE = "approvals:decide"
    SIGNALS_SEND = "signals:send"
    METRICS_READ = "metrics:read"
    ADMIN = "admin"


class InvalidTokensFile(SmithersError):
    """A line of the tokens file is invalid; the text names the line, never its contents."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The caller; `scopes` is None if the server has no tokens, and everything is allowed."""

    user: str | None
    scopes: tuple[str, ...] | None
    run_id: str | None = None  # of a stream token: the only run whose events it opens
    # SHA-256 of the presented token; None: none was required, or it is a stream token.
    digest: bytes | None = field(default=None, repr=False, compare=False)

    def allows(self, scope: Scope) -> bool:
        """Say whether the credential covers a route's scope."""
        return self.scopes is None or EVERYTHING in self.scopes or scope in self.scopes


@dataclass(frozen=True, slots=True)
class Token:
    """A row of the table of tokens."""

    credential: Credential
    expires_at_s: float | None  # since 1970

    @property
    def is_expired(self) -> bool:
        """Whether it is no longer valid."""
        return self.expires_at_s is not None and self.expires_at_s <= time.time()


Tokens = dict[bytes, Token]  # by their SHA-256


ANYBODY: Final = Credential(user=None, scopes=None)


class Access:
    """Finds the credential of a request; one for each process."""

    def __init__(
        self, *, auth_token: str | None, tokens_file: Path | None, only_loopback_names: bool
    ) -> None:
        """Read the file at once; raises InvalidTokensFile, or OSError where there is none."""
        self._is_open = not auth_token and tokens_file is None
        self._fixed: Tokens = {}
        if auth_token:
            hashed = digest(auth_token.encode())
            self._fixed[hashed] = Token(Credential(None, (EVERYTHING,), digest=hashed), None)
        self._file = tokens_file
        self._tokens = self._fixed
        self._identity: tuple[int, int, int] | None = None
        self._check_at = 0.0
        self._gone_complaint = Complaint()
        self._unreadable_complaint = Complaint()
        self._only_loopback_names = only_loopback_names
        if tokens_file is not None:
            self._identity = _identity(tokens_file)
            self._tokens = self._fixed | read_tokens(tokens_file.read_text(encoding="utf-8"))

    def admit(self, headers: CIMultiDictProxy[str]) -> Credential:
        """Find the caller's credential; raises Unauthorized, or Forbidden if a foreign page may be the caller."""
        if self._is_open:
            if self._only_loopback_names:
                _refuse_foreign_pages(headers)
            return ANYBODY
        self._keep_up()
        for presented in _presented(headers):
            if (credential := self._find(presented)) is not None:
                return credential
        raise Unauthorized

    def still_admits(self, credential: Credential) -> bool:
        """Say whether an admitted credential is still valid and unchanged: for streams, which outlast a check."""
        if credential.digest is None:
            return True
        self._keep_up()
        token = self._tokens.get(credential.digest)
        return token is not None and token.credential == credential and not token.is_expired

    def _find(self, presented: bytes) -> Credential | None:
        wanted = digest(presented)
        found = None
        for hashed, token in self._tokens.items():  # to the end: the time must not tell which fits
            if hmac.compare_digest(hashed, wanted):
                found = token
        return None if found is None or found.is_expired else found.credential

    def _keep_up(self) -> None:
        if self._file is not None and time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + CHECK_FILE_S
            self._reread(self._file)

    def _reread(self, path: Path) -> None:
        try:
            identity = _identity(path)
            if identity == self._identity:
                return
            data = path.read_bytes()
            self._identity = identity  # of the version read: an invalid one is reported once
            self._tokens = self._fixed | read_tokens(data.decode())
        except FileNotFoundError:
            self._identity = None
            self._tokens = self._fixed
            if self._gone_complaint.may_be_said():
                LOG.warning("tokens_file_gone")
        except OSError as error:
            if self._unreadable_complaint.may_be_said():
                LOG.warning("tokens_file_unreadable", error=str(error))
        except (ValueError, InvalidTokensFile) as error:
            LOG.warning("tokens_file_unreadable", error=str(error))
        else:
            LOG.info("tokens_file_read", token_count=len(self._tokens) - len(self._fixed))


def read_access(settings: GatewaySettings) -> Access:
    """Load the tokens; raises InsecureSettings, InvalidTokensFile, OSError."""
    settings.check()
    return Access(
        auth_token=settings.auth_token,
        tokens_file=settings.tokens_file,
        only_loopback_names=settings.is_loopback,
    )


def digest(token: bytes) -> bytes:
    """Hash a token as in the tokens file."""
    return hashlib.sha256(token).digest()


def read_tokens(text: str) -> Tokens:
    """Read lines of strict JSON `{sha256, user, scopes, expiresAt?}`; raises InvalidTokensFile.

    `expiresAt`: milliseconds since 1970, or ISO 8601. Unknown fields are refused: a misspelt one would mean no expiry.
    """
    tokens: Tokens = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                hashed, token = _token(parse_json(line.encode()))
                tokens[hashed] = token
            except (InvalidJson, ValueError, KeyError, TypeError) as error:
                lacking = f"{error} is missing" if isinstance(error, KeyError) else "a wrong value"
                raise InvalidTokensFile(
                    f"line {number} of the tokens file is not "
                    '{"sha256" (of the token, in hexadecimal), "user", "scopes", "expiresAt"?}: '
                    + lacking
                ) from error
    return tokens


def _token(line: dict[str, Any]) -> tuple[bytes, Token]:
    if not TOKEN_FIELDS.issuperset(line):
        raise ValueError("an unknown field")
    hashed = bytes.fromhex(line["sha256"])
    scopes = line["scopes"]
    known = {EVERYTHING, *Scope}
    user = line["user"]
    if len(hashed) != 32 or not isinstance(user, str) or not isinstance(scopes, list):
        raise ValueError("a field has the wrong shape")
    if user.startswith(SERVERS_OWN):
        raise ValueError("a reserved user")
    if not all(isinstance(scope, str) and scope and " " not in scope for scope in scopes):
        raise ValueError("a scope is not a word")
    # Unknown scopes are the author's own: an approval's allowedScopes may name them.
    ordered = sorted(scopes, key=lambda scope: (scope not in known, scope))
    credential = Credential(user, tuple(ordered), digest=hashed)
    return hashed, Token(credential, _moment(line.get("expiresAt")))


def _moment(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool):
        raise TypeError("not a time")
    return float(value) / 1000


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)  # noqa: PTH116 - Path.stat is the same with a detour, and this is asked often
    return status.st_mtime_ns, status.st_size, status.st_ino


def _presented(headers: CIMultiDictProxy[str]) -> Iterable[bytes]:
    # Duplicate headers: it is unknown which one a proxy has checked, so neither counts.
    authorization = headers.getall("Authorization", ())
    if len(authorization) == 1:
        scheme, _, token = authorization[0].partition(" ")
        if scheme.lower() == "bearer" and (token := token.strip()):
            yield token.encode("utf-8", "surrogateescape")
    keys = headers.getall("x-smithers-key", ())
    if len(keys) == 1 and keys[0]:
        yield keys[0].encode("utf-8", "surrogateescape")


def _refuse_foreign_pages(headers: CIMultiDictProxy[str]) -> None:
    """Refuse requests that another site's page sends through its visitor's browser.

    By DNS rebinding, which the Host header shows, or by a simple cross-site request, which the Origin header shows.
    """
    if not _is_loopback(f"//{headers.get('Host', '')}"):
        raise Forbidden("Without a token the Host header must name localhost, 127.0.0.1 or ::1.")
    origin = headers.get("Origin")
    if origin is not None and not _is_loopback(origin):
        raise Forbidden("Without a token only pages of this host may send requests.")


@lru_cache(maxsize=64)  # most callers of such a server send the same few names
def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in LOOPBACK_NAMES
    except ValueError:
        return False
