"""The API contract of OmniServe: `LLMService` and its validation."""
