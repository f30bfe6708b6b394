"""Permutation of input channels, so that N:M groups keep more."""
