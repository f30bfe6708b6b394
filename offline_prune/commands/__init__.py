"""Sub-commands of ``offline-prune``, one file each: flags, and what they call."""
