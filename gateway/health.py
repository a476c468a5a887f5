"""Report whether the process is alive, whether it should get requests, and its metrics."""

import asyncio
import time
from typing import Annotated, Final

from aiohttp import web

from gateway.envelope import BASE_HEADERS
from gateway.errors import NotReady
from gateway.exchange import Exchange, Services
from gateway.responses import Healthy, Ready
from gateway.routing import Media
from smithers.errors import StoreError
from smithers.store.schema import find_revision

CHECK_TIMEOUT_S: Final = 2.0
KEPT_S: Final = 1.0


async def get_health(_exchange: Exchange) -> Healthy:
    """Report that the process is alive; nothing else is checked."""
    return {"ok": True}


async def get_ready(exchange: Exchange) -> Ready:
    """Say whether requests should come here; the failing check is named."""
    readiness = exchange.services.readiness
    if readiness.is_draining:
        raise NotReady(details={"check": "draining"})
    if time.monotonic() - readiness.checked_at > KEPT_S:
        readiness.failing = await _find_failing(exchange.services)
        readiness.checked_at = time.monotonic()
    if readiness.failing is not None:
        raise NotReady(details={"check": readiness.failing})
    settings = exchange.services.settings
    return {"ok": True, "sandbox": settings.sandbox, "database": settings.database_warning}


async def get_metrics(
    exchange: Exchange,
) -> Annotated[web.StreamResponse, Media(("text/plain", "application/openmetrics-text"))]:
    """Return the metrics in Prometheus' format."""
    accept = exchange.request.headers.get("Accept", "")
    body, content_type = await exchange.services.metrics.expose(accept)
    return web.Response(body=body, headers={**BASE_HEADERS, "Content-Type": content_type})


async def _find_failing(services: Services) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            revision = await find_revision(services.probes)
    except (TimeoutError, StoreError):
        return "database"
    # A newer schema than ours is fine: adjacent versions run side by side.
    return "schema" if revision is None or revision in services.revisions.older else None
