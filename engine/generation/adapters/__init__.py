"""LoRA adapters: reading and checking their files, which ones are served, and their place on the device."""
