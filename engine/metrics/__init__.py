"""Measures that the other packages share: of answers, of probabilities, of differences. numpy alone."""
