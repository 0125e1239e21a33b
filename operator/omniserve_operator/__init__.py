"""The Kubernetes operator: its own issue builds it; its import rules hold from the start."""
