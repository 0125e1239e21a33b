"""How long first tokens are on their way, and that the engine is told."""

import time

from omniserve_agent.engine.messages import TokenEvent
from omniserve_agent.http.delivery import FIRST_GUESS_S, LEAST_SAMPLES, SAMPLES, Deliveries


def test_the_allowance_is_a_guess_until_enough_was_seen_then_most_keep_it():
    deliveries = Deliveries()
    for _ in range(LEAST_SAMPLES - 1):
        deliveries.delivered(0.5)
    assert deliveries.allowance_s == FIRST_GUESS_S
    deliveries.delivered(0.5)
    assert deliveries.allowance_s == 0.5
    for number in range(SAMPLES):  # the old ones are forgotten
        deliveries.delivered(0.04 if number % 10 == 0 else 0.002)
    assert deliveries.allowance_s == 0.04
    for _ in range(SAMPLES - 8):
        deliveries.delivered(0.002)
    assert deliveries.allowance_s == 0.002


async def test_the_engine_is_told_how_long_its_first_tokens_were_on_their_way(
    engine, service, serving, tokenizer
):
    ids = tokenizer.encode("Hello there")

    def script(submit):
        chosen_s = time.monotonic() - 0.25
        for token in ids:
            yield TokenEvent(request_id=submit.request_id, token_ids=[token], chosen_s=chosen_s)
        yield TokenEvent(request_id=submit.request_id, finish_reason="stop")

    backend = engine(script)
    async with serving([service(backend)]) as client:
        for _ in range(LEAST_SAMPLES + 1):
            await client.post("/v1/completions", json={"model": "chat", "prompt": "x"})
        _, text, _ = await client.get("/metrics")
        _, report, _ = await client.get("/statusz")
    assert backend.submits[0].delivery_ms == 1e3 * FIRST_GUESS_S
    assert 250 <= backend.submits[-1].delivery_ms < 10_000
    assert 250 <= report["deliveryMs"] < 10_000
    assert 'omniserve_delivery_seconds_bucket{class="LS",le="0.2"' in str(text)
