"""A client that reads nothing loses its connection."""

import asyncio

from aiohttp import web

from omniserve_agent.http.records import ClientGoneError
from omniserve_agent.http.streaming import EventStream


async def test_a_client_that_reads_nothing_is_cut_off():
    async def handler(request):
        events = EventStream(request, write_timeout_s=0.1)
        try:
            await events.send("x" * (32 << 20))
            await events.done()
        except ClientGoneError:
            pass
        return events.response

    app = web.Application()
    app.add_routes([web.get("/", handler)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(3):
            while not runner.server.connections:
                await asyncio.sleep(0.005)
            while runner.server.connections:
                await asyncio.sleep(0.005)
    finally:
        writer.transport.abort()
        await runner.cleanup()
