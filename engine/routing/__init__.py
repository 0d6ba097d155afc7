"""Signals, arms and the decision which arm answers a question (numpy only; nothing is fitted here)."""
