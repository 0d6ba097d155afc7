"""What the benches race against, each in a process of its own."""
