"""One parametric decoder for the Llama family: what config.json says, its weights, its forward."""
