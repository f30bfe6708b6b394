"""Linear layers that own their weight on a CPU, and choose a kernel per step."""
