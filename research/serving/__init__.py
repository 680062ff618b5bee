"""Serving, measured against what others serve with."""
