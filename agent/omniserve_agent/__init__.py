"""The node agent: HTTP, node supervision, scheduling and the engine."""
