"""Examples to a trained adapter: reading them, judging them before training, splitting them."""
