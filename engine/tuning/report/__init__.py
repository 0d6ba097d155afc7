"""A run's outcome as one HTML page and as JSON.

    Outcome -> judge -> Judgement -> page -> report.html

What a reader is told is computed here without a plot or a tag (comparison, judgement, learning, confusion, reliability,
samples), then put into words and pictures (page and its sections), with the parts of `engine.report`.
"""
