"""What of an engine's message is taken in first."""

import asyncio

from omniserve_agent.engine.messages import Outputs, TokenEvent
from omniserve_agent.node.engine_link import PASSES_TO_A_CLIENT, first_tokens


def event(name, first=False):
    return TokenEvent(request_id=name, token_ids=[1], first=first)


def test_first_tokens_get_ahead_of_the_others(run):
    async def through():
        passed, taken = [], []

        def receive(message):
            taken.append(([one.request_id for one in message.events], len(passed)))

        async def count_passes():
            while True:
                passed.append(1)
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_passes())
        events = [event("new", True), event("newer", True), event("old"), event("older")]
        receive(await first_tokens(Outputs(events), receive))
        counting.cancel()
        return taken

    (firsts, at_once), (others, later) = run(through())
    assert firsts == ["new", "newer"]
    assert others == ["old", "older"]
    assert later - at_once >= PASSES_TO_A_CLIENT


def test_nobody_waits_where_there_is_nobody_to_wait_for(run):
    async def through(events):
        taken = []
        message = await first_tokens(Outputs(events), taken.append)
        return taken, message.events

    for events in ([], [event("old")], [event("new", True)]):
        assert run(through(events)) == ([], events)
