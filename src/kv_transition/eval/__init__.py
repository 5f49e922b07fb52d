"""From answers to scores and failure labels."""
