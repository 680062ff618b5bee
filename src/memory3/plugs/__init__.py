"""Plugs: a bank as other programs take it. Each file is one of them, behind an extra of its name."""
