"""Writing memories: a reference is read once by the model, and the best of its key-value pairs are kept."""
