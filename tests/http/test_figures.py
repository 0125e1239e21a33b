"""Readiness, attainment end to end with a fake clock, /statusz and /metrics."""

import asyncio

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from omniserve_agent.engine.messages import HostMemory, ServiceClass, Stats, TokenEvent
from omniserve_agent.http.settings import HttpSettings
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError, Slo


@pytest.fixture
def timed(clock, tokenizer):
    """A script that lets `first_s` seconds pass before its first token."""
    ids = tokenizer.encode("one two three")

    def make(first_s):
        def script(submit):
            for position, token_id in enumerate(ids):
                if position == 0:
                    yield lambda: clock.advance(first_s)
                yield TokenEvent(
                    request_id=submit.request_id,
                    token_ids=[token_id],
                    finish_reason="stop" if position == len(ids) - 1 else None,
                )

        return script

    return make


async def samples(client):
    _, text, headers = await client.get("/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(name, **labels):
    return (name, frozenset(labels.items()))


async def test_healthz_and_readyz(engine, service, serving, say):
    backend = engine(say("x"), ready=None)
    async with serving([service(backend)]) as client:
        assert (await client.get("/healthz"))[:2] == (200, {"status": "ok"})
        status, body, _ = await client.get("/readyz")
        assert (status, body["reasons"]) == (503, {"default/chat": "loading weights"})
        assert (await client.get("/readyz/default/chat"))[0] == 503
        backend.ready = engine(say("x")).ready
        assert (await client.get("/readyz"))[0] == 200
        assert backend.submits == []


async def test_statusz_shows_where_host_kv_lies(engine, service, serving, say):
    backend = engine(say("x"))
    memory = HostMemory(
        bytes=9 << 20, huge_page_bytes=8 << 20, policy="interleaved", numa_nodes=[0, 1]
    )
    backend.ready = msgspec.structs.replace(backend.ready, host_memory=memory)
    async with serving([service(backend)]) as client:
        _, report, _ = await client.get("/statusz")
    shown = report["engines"][0]["limits"]["host_memory"]
    assert shown == msgspec.to_builtins(memory)


async def test_an_emulated_device_is_named_everywhere(engine, service, serving, say):
    backend = engine(say("x"))
    backend.ready = msgspec.structs.replace(backend.ready, device="emulated:slow")
    async with serving([service(backend)]) as client:
        _, ready, _ = await client.get("/readyz")
        assert ready["emulated"] == ["engine-0: emulated device slow"]
        _, report, _ = await client.get("/statusz")
        assert report["engines"][0]["emulated"] == "emulated device slow"
        found = await samples(client)
    assert (
        found[labelled("omniserve_engine_device", engine="engine-0", device="emulated:slow")] == 1
    )


async def test_a_service_is_ready_when_it_completes_a_token(engine, service, serving, say):
    backend = engine(say("x"))
    async with serving([service(backend)]) as client:
        assert (await client.get("/readyz/default/chat"))[:2] == (200, {"status": "ready"})
        assert (await client.get("/readyz/default/none"))[0] == 404
        _, report, _ = await client.get("/statusz")
    assert backend.submits[0].max_tokens == 1
    assert report["services"][0]["total"]["offered"] == 0  # probes are no traffic


@pytest.mark.parametrize(
    ("reason", "status"), [("queue_full", 200), ("too_long", 503), ("bad_request", 503)]
)
async def test_a_full_queue_is_an_answer(engine, service, serving, reason, status):
    backend = engine(lambda _: [RequestRefusedError(reason, "words")])
    async with serving([service(backend)]) as client:
        assert (await client.get("/readyz/default/chat"))[0] == status


async def test_probes_time_out_and_share_one_completion(engine, service, serving, say):
    gate = asyncio.Event()
    backend = engine(say("x", before=[gate]))
    settings = HttpSettings(probe_timeout_s=0.2)
    async with serving([service(backend)], settings=settings) as client:
        answers = await asyncio.gather(*(client.get("/readyz/default/chat") for _ in range(3)))
        assert [status for status, _, _ in answers] == [503] * 3
        assert answers[0][1]["reasons"] == {"default/chat": "no token within 0.2 s"}
        assert len(backend.submits) == 1
        assert len(backend.closed) == 1


async def test_an_unusable_tokenizer_is_told(engine, service, serving, say, tmp_path):
    broken = service(engine(say("x")), tokenizer_dir=str(tmp_path))
    async with serving([broken]) as client:
        status, answer, _ = await client.complete()
        assert (status, answer["error"]["code"]) == (503, "tokenizer_unavailable")
        assert str(tmp_path / "tokenizer.json") in answer["error"]["message"]


@pytest.mark.parametrize(
    ("first_s", "stream", "attained"),
    [(0.25, True, 1), (0.25, False, 1), (0.75, True, 0), (0.75, False, 0)],
)
async def test_attainment_of_a_request(
    engine, service, serving, timed, clock, first_s, stream, attained
):
    backend = engine(timed(first_s))
    async with serving([service(backend)], clock=clock) as client:
        status, _, _ = await client.complete(stream=stream)
        _, report, _ = await client.get("/statusz")
        found = await samples(client)
    assert status == 200
    figures = report["services"][0]
    assert (figures["total"]["offered"], figures["total"]["attained"]) == (1, attained)
    assert figures["window"]["attained"] == attained
    assert figures["window"]["ttftMsP50"] == first_s * 1e3
    assert (figures["running"], figures["waiting"]) == (0, 0)
    assert backend.judgements == [("default/chat", bool(attained))]
    assert backend.submits[0].sender_judges
    names = {"service": "default/chat", "class": "LS"}
    assert found[labelled("omniserve_slo_offered_total", **names)] == 1
    assert found[labelled("omniserve_slo_attained_total", **names)] == attained
    assert found[labelled("omniserve_ttft_seconds_sum", **names)] == first_s


async def test_tpot_counts(engine, service, serving, tokenizer, clock):
    """The client takes each token before fake time moves on."""
    ids = tokenizer.encode("one two three")
    gates = [asyncio.Event() for _ in ids[1:]]

    def script(submit):
        for token_id, gate in zip(ids, [*gates, None], strict=True):
            yield TokenEvent(request_id=submit.request_id, token_ids=[token_id])
            if gate is not None:
                yield gate
        yield TokenEvent(request_id=submit.request_id, finish_reason="stop")

    async with serving([service(engine(script))], clock=clock) as client:
        stream = await client.openai.completions.create(model="chat", prompt="x", stream=True)
        await anext(stream)
        for gate in gates:
            clock.advance(0.125)
            gate.set()
            await anext(stream)
        assert (await anext(stream)).choices[0].finish_reason == "stop"
        await stream.close()
        _, report, _ = await client.get("/statusz")
    figures = report["services"][0]
    assert figures["window"]["tpotMsP99"] == 125
    assert (figures["total"]["finished"], figures["total"]["attained"]) == (1, 0)


async def test_what_counts_as_offered(engine, service, serving, say):
    failures = [RequestRefusedError("queue_full", "full"), ValueError("bug"), None]
    backend = engine(lambda s: [failures.pop(0)] if failures and failures[0] else say("x")(s))
    async with serving([service(backend)]) as client:
        statuses = [(await client.complete())[0] for _ in range(3)]
        statuses.append((await client.complete(n=0))[0])
        statuses.append((await client.complete(max_tokens=10**6))[0])
        _, report, _ = await client.get("/statusz")
        found = await samples(client)
    assert statuses == [429, 500, 200, 400, 400]
    total = report["services"][0]["total"]
    assert (total["offered"], total["refused"], total["failed"], total["finished"]) == (3, 1, 1, 1)
    names = {"service": "default/chat", "class": "LS"}
    for outcome in ("refused", "failed", "finished", "caller_error"):
        assert found[labelled("omniserve_requests_total", outcome=outcome, **names)] == 1
    unread = {"service": "", "class": "", "outcome": "caller_error"}
    assert found[labelled("omniserve_requests_total", **unread)] == 1


async def test_refused_and_failed_requests_burn_the_error_budget_of_clients(
    engine, service, serving, say, clock
):
    """The engine's own burn tells of what it took; margins can not help those it refused."""
    answers = [RequestRefusedError("slo", "full"), EngineUnavailableError("died"), *[None] * 18]
    backend = engine(lambda s: [answer] if (answer := answers.pop(0)) else say("x")(s))
    names = {"service": "default/chat", "class": "LS"}
    burn = labelled("omniserve_slo_error_budget_burn_ratio", **names)
    quiet, batch = engine(say("x")), engine(say("x"))
    services = [
        service(backend),
        service(quiet, name="quiet"),
        service(batch, name="batch", service_class=ServiceClass.BE),
    ]
    async with serving(services, clock=clock) as client:
        statuses = [(await client.complete())[0] for _ in range(19)]
        assert (await samples(client))[burn] == 0  # too few to say
        statuses.append((await client.complete())[0])
        found = await samples(client)
        _, report, _ = await client.get("/statusz")
        clock.advance(301)
        assert (await samples(client))[burn] == 0
    assert statuses == [429, 503, *[200] * 18]
    assert found[burn] == pytest.approx(10.0)  # 2 of 20 where 1 % may
    assert [s["slo"]["errorBudgetBurn"] for s in report["services"][:2]] == [10.0, 0.0]
    assert found[labelled(burn[0], service="default/quiet", **{"class": "LS"})] == 0
    assert labelled(burn[0], service="default/batch", **{"class": "BE"}) not in found
    assert backend.judgements == [("default/chat", True)] * 18


async def test_counters_begin_at_0_with_the_service(engine, service, serving, say):
    """`rate` sees a rise only where there was something before: the first failure is one too."""
    services = [
        service(engine(say("x"))),
        service(engine(say("x")), name="batch", service_class=ServiceClass.BE),
    ]
    async with serving(services) as client:
        found = await samples(client)
    for name, kind in (("default/chat", "LS"), ("default/batch", "BE")):
        names = {"service": name, "class": kind}
        for outcome in ("finished", "refused", "failed"):
            assert found[labelled("omniserve_requests_total", outcome=outcome, **names)] == 0
        for counter in ("omniserve_slo_offered_total", "omniserve_slo_attained_total"):
            assert found.get(labelled(counter, **names)) == (0 if kind == "LS" else None)


async def test_each_ls_services_objective_is_told(engine, service, serving, say):
    loose = Slo(ttft_ms=100, tpot_ms=20, objective_percent=95)
    services = [
        service(engine(say("x"))),
        service(engine(say("x")), name="loose", slo=loose),
        service(engine(say("x")), name="batch", service_class=ServiceClass.BE),
    ]
    async with serving(services) as client:
        found = await samples(client)
    told = {
        dict(labels)["service"]: value
        for (name, labels), value in found.items()
        if name == "omniserve_slo_objective_ratio"
    }
    assert told == {"default/chat": 0.99, "default/loose": 0.95}


async def test_be_figures_and_token_counters(engine, service, serving, say, clock, tokenizer):
    backend = engine(say("one two", cached_tokens=2))
    batch = service(backend, name="batch", service_class=ServiceClass.BE)
    async with serving([batch], clock=clock) as client:
        assert (await client.complete(model="batch", n=2))[0] == 200
        clock.advance(30)
        _, report, _ = await client.get("/statusz")
        found = await samples(client)
    tokens = 2 * len(tokenizer.encode("one two"))
    figures = report["services"][0]
    assert figures["outputTokens"] == tokens
    assert figures["tokensPerMinute"] == tokens * 2
    assert not any(name == "omniserve_slo_offered_total" for name, _ in found)
    assert "slo" not in figures
    assert (figures["total"]["offered"], figures["total"]["attained"]) == (2, 0)
    names = {"service": "default/batch", "class": "BE"}
    assert found[labelled("omniserve_output_tokens_total", **names)] == tokens
    assert found[labelled("omniserve_cached_prompt_tokens_total", **names)] == 4
    prompt = 2 * len(tokenizer.encode("Hello"))
    assert found[labelled("omniserve_prompt_tokens_total", **names)] == prompt


async def test_engine_figures(engine, service, serving, say):
    stats = Stats(
        services={},
        iterations=7,
        rows_in_flight=5,
        joins=40,
        same_iteration_joins=3,
        stale_completions=2,
        host_attention_rows={ServiceClass.BE: 90},
        device_attention_rows={ServiceClass.LS: 60, ServiceClass.BE: 6},
        host_workers_busy_share=0.5,
        host_kv_blocks=100,
        host_kv_blocks_used=25,
        iteration_ms=12.5,
        binding_ceiling="host_bandwidth",
        margin_widening=1.25,
        error_budget_slack_share=0.05,
        error_budget_burn=1.5,
        error_budget_burns={"default/chat": 0.5, "team/chat": 1.5},
    )
    quiet = engine(say("x"), ready=None)
    services = [service(engine(say("x"), stats=stats, restarts=2)), service(quiet, name="quiet")]
    async with serving(services) as client:
        found = await samples(client)
        _, report, _ = await client.get("/statusz")
    expected = {
        ("omniserve_engine_ready",): 1,
        ("omniserve_engine_restarts_total",): 2,
        ("omniserve_engine_iterations_total",): 7,
        ("omniserve_engine_iteration_seconds",): 0.0125,
        ("omniserve_engine_rows_in_flight",): 5,
        ("omniserve_engine_joins_total",): 40,
        ("omniserve_engine_same_iteration_joins_total",): 3,
        ("omniserve_engine_stale_completions_total",): 2,
        ("omniserve_engine_host_attention_rows_total", "class", "BE"): 90,
        ("omniserve_engine_device_attention_rows_total", "class", "LS"): 60,
        ("omniserve_engine_host_workers_busy_ratio",): 0.5,
        ("omniserve_engine_kv_blocks", "tier", "host"): 100,
        ("omniserve_engine_kv_blocks_used", "tier", "host"): 25,
        ("omniserve_engine_binding_ceiling", "ceiling", "host_bandwidth"): 1,
        ("omniserve_engine_binding_ceiling", "ceiling", "dense_rows"): 0,
        ("omniserve_engine_margin_widening_ratio",): 1.25,
        ("omniserve_engine_error_budget_slack_ratio",): 0.05,
        ("omniserve_engine_error_budget_burn_ratio",): 1.5,
        ("omniserve_engine_service_error_budget_burn_ratio", "service", "default/chat"): 0.5,
    }
    for (name, *label), value in expected.items():
        labels = {"engine": "engine-0"} | dict([label] if label else [])
        assert found[labelled(name, **labels)] == value, name
    assert found[labelled("omniserve_engine_ready", engine="engine-1")] == 0
    assert labelled("omniserve_engine_joins_total", engine="engine-1") not in found
    first, second = report["engines"]
    assert first["stats"]["host_attention_rows"] == {"BE": 90}
    assert "type" not in first["stats"]
    assert first["limits"]["max_request_tokens"] == {"LS": 256, "BE": 512}
    assert (second["services"], second["stats"], second["ready"]) == (
        ["default/quiet"],
        None,
        False,
    )
    assert [s["state"] for s in report["services"]] == ["Serving", "Loading"]
