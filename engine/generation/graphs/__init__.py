"""Steps of a few tokens recorded once for each size and repeated by one launch: where a GPU waits for the host."""
