"""The pipeline: one decoder block in memory at a time, from safetensors to safetensors.

``run.py`` alone knows the order; every other file does one step of it.
"""
