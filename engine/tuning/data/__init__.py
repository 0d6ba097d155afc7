"""A file of examples to typed rows, or to the lines that are wrong with it."""
