"""Generation requests to prompts to token deltas."""
