"""What each operation of `kernels/` is timed on: inputs, peers, the definition, and the least work that it needs."""
