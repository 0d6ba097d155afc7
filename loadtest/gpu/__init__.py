"""Switchyard on a GPU, over random weights in well-known shapes: first that it is right, then how fast."""
