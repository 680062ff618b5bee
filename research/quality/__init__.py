"""Answers as good as text: ways to keep and to read what is kept, tried beside one another on three sets and two models."""
