"""The Kubernetes operator: LLMServices to ServingNodes, endpoints, statuses and Events."""
