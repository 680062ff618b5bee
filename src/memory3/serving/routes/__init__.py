"""The routes of a server. Each file has a function ``router(state)``."""
