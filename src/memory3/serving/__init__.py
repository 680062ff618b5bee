"""Serving: many requests at once over one model, each with its own memories. `engine` knows no network."""
