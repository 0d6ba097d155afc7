"""Measured answers of every arm: how they are kept, what can be learned from them, and how good that is. Offline."""
