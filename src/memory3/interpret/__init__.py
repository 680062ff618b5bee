"""Inside a model: which attention edges and MLPs an answer goes through, and which knowledge a text can stand for."""
