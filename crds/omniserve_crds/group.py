"""The API group: the one place its name is written."""

GROUP = "omniserve.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

LLM_SERVICE_KIND = "LLMService"
SERVING_NODE_KIND = "ServingNode"
