"""Where requests are expected to end: when they come, and again while they wait. Pure.

The first requests of a service come before any of it has finished. Whoever still waits when its
lengths become known is predicted by them, so that it is let in where it fits to its end.
"""

from __future__ import annotations

from omniserve_agent.scheduling.jobs import JobIndex, ServiceClass, Stage


def predicted_tokens(prompt_tokens: int, expected: int, known: int, most: int) -> int:
    """Prompt and output at the end: at least a token more than the `known`, at most `most`."""
    return min(max(prompt_tokens + expected, known + 1), most)


def predict_again(jobs: JobIndex, service: str, expected: int) -> None:
    """BE requests of `service` that wait are expected to output so many tokens.

    They hold no KV: the index notes nothing of where they end.
    """
    for job in jobs.at(ServiceClass.BE, Stage.WAITING):
        if job.service == service:
            job.predicted_tokens = predicted_tokens(
                job.prompt_tokens, expected, job.tokens, job.max_total_tokens
            )
