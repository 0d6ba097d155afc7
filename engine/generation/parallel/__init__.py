"""Tensor parallelism: several processes (ranks) hold one model, each a part of every layer, and step together."""
