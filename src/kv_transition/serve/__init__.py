"""The KV-budget server: the reference engine behind an OpenAI-compatible HTTP API."""
