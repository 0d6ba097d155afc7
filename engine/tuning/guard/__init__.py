"""What a set of examples is worth, said before anything is trained on it."""
