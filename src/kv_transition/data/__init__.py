"""Records in, manifests out: loading, prompts, token counts, length bins."""
