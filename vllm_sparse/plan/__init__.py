"""What a deployment reads and holds: bytes, ceilings and memory, before it exists.

A model of bytes, from shapes and data sheets. Nothing is measured but, on a CPU that is
asked for, its memory bandwidth. No weights are read.
"""
