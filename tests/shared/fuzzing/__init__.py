"""Fuzzing of everything that is read from a model folder or a cache.

A case is made from two numbers, the seed and its own number, so that a finding can be
made again: ``python -m fuzzing config --seed 1 --first 4711 --cases 1``. See
docs/security.md.
"""
