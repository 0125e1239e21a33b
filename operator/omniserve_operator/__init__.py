"""The Kubernetes operator (built by a later issue; the package exists so that its import rules hold from the start)."""
