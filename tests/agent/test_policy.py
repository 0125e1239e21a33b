"""The default policy on the real model: it measures the device, and budgets iterations by that."""

import pytest

pytestmark = pytest.mark.real_model


def test_the_slo_driven_policy_budgets_iterations(running_agent, write_manifest, documents):
    file = write_manifest(documents["chat"], documents["batch"])
    with running_agent(file, "--policy", "omniserve", "--admission", "reject") as agent:
        for model in ("batch", "chat"):
            assert agent.complete("Once upon a time", model).usage.completion_tokens == 16
        stats = agent.until(
            lambda: (said := agent.stats()).get("error_budget_burns") and said,
            "chat's error budget",
        )
        assert stats["iteration_budget_ms"] > 0
        assert stats["iteration_budget_ms"] >= stats["iteration_ls_ms"]
        assert stats["prediction_margin"] >= 1.0
        assert agent.metric("omniserve_engine_margin_quantile") > 0
        assert 0 < agent.metric("omniserve_engine_error_budget_slack_ratio") <= 1
        assert agent.metric("omniserve_engine_margin_widening_ratio") >= 1
        assert stats["error_budget_burns"] == {"default/chat": 0.0}
        assert agent.metric("omniserve_engine_admission_queued_requests") == 0
