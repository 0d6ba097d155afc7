"""Load tests and benchmarks. Run from a checkout; not part of the installed package."""
