"""Texts to vectors, and passages to scores: the models of retrieval and their turns."""
