"""Reading memories while a model generates: the memory of a request, and how engines drive it."""
