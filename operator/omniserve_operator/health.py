"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from omniserve_operator.metrics import Metrics
from omniserve_operator.reconcile import Reconciler

# A pass over a thousand services takes seconds, not a minute: then the loop hangs.
UNHEALTHY_AFTER_S = 60.0
UNREADY_AFTER_S = 60.0  # passes are made every 10 s at least; each of them failed


def application(
    reconciler: Reconciler, metrics: Metrics, leads: Callable[[], bool]
) -> web.Application:
    """The three pages."""

    async def healthz(_: web.Request) -> web.Response:
        """Age of the loop's last turn: a loop that hangs is to be restarted."""
        age_s = time.monotonic() - reconciler.turned_s
        words = f"last reconcile loop {age_s:.0f} s ago"
        return web.Response(text=words, status=200 if age_s < UNHEALTHY_AFTER_S else 503)

    async def readyz(_: web.Request) -> web.Response:
        """Ready where it does its work, or stands by while another one does."""
        if not leads():
            return web.Response(text="stands by: another one holds the Lease, or nobody yet")
        if reconciler.passed_s is None:
            return web.Response(text="no reconcile has gone through yet", status=503)
        age_s = time.monotonic() - reconciler.passed_s
        words = f"last reconcile that went through {age_s:.0f} s ago"
        return web.Response(text=words, status=200 if age_s < UNREADY_AFTER_S else 503)

    async def pages(_: web.Request) -> web.Response:
        text = generate_latest(metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", pages)]
    )
    return app


async def serve(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Listening; the caller cleans the runner up."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
