"""The default policy on the real model: it measures the device, and budgets iterations by that."""

import pytest

pytestmark = pytest.mark.real_model


def test_the_slo_driven_policy_budgets_iterations(running_agent, write_manifest, documents):
    file = write_manifest(documents["chat"], documents["batch"])
    with running_agent(file, "--policy", "omniserve", "--admission", "reject") as agent:
        for model in ("batch", "chat"):
            assert agent.complete("Once upon a time", model).usage.completion_tokens == 16
        stats = agent.until(
            lambda: agent.stats() if agent.stats().get("iteration_budget_ms") else None,
            "a budget",
        )
        assert stats["iteration_budget_ms"] >= stats["iteration_ls_ms"]
        assert stats["prediction_margin"] >= 1.0
        assert agent.metric("omniserve_engine_margin_quantile") > 0
        assert agent.metric("omniserve_engine_admission_queued_requests") == 0


def test_what_no_waiting_can_save_is_taken_and_what_load_prevents_is_refused(
    running_agent, write_manifest, documents, together
):
    """A first token within a second: one prompt can, sixteen at once can not."""
    chat = documents["make"]("chat", "LS", ttftMs=1000, tpotMs=60000)
    with running_agent(
        write_manifest(chat), "--policy", "omniserve", "--admission", "reject"
    ) as agent:
        prompt = "word " * 300

        def ask(number):
            body = f'{{"model": "chat", "prompt": "{number} {prompt}", "max_tokens": 2}}'
            return agent.fetch("/v1/completions", body.encode())

        answers = [*together.map(ask, range(40))]
        refused = [text for status, text in answers if status == 429]
        assert {status for status, _ in answers} == {200, 429}
        assert all("could not attain its SLO now" in text for text in refused)
        assert all("slo_not_attainable" in text for text in refused)
        window = agent.service("chat")["window"]
        assert window["refused"] == len(refused)
