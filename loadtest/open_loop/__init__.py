"""Requests sent at the times that a rate asks for, answered or not; what became of each, and the report of a run."""
