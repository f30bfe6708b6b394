"""Linear layers that own their weight on a GPU, and choose a kernel per step."""
