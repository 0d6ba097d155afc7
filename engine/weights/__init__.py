"""What `engine.models` is made of: the cache, downloads, and the conversion of GGUF files."""
