"""The training bench: what is trained on, and the systems, each in a process of its own."""
