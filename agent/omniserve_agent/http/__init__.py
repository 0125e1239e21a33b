"""The OpenAI API, attainment and metrics."""
