"""A Ray cluster of several nodes on one machine, and what happens to answers when one of them dies."""
