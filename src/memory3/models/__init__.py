"""Models: load them, adapt them, know them again."""
