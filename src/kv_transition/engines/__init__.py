"""How a KV budget is applied to a model and proved."""
