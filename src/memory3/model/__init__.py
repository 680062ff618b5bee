"""Models: load them, attach to them, encode references with them."""
