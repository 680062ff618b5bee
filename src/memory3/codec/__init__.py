"""Codecs: a memory as bytes and back. Knows no bank and no model."""
