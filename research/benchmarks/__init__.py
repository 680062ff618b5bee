"""Benchmarks that were made to find something out. ``memory3 bench`` runs them as those of `memory3.benchmarks`: each
module has ``OPTIONS`` and ``run``.
"""
