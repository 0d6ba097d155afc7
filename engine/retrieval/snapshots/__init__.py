"""A collection to a file and back."""
