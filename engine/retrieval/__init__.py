"""Documents to chunks to store to live index to evidence."""
