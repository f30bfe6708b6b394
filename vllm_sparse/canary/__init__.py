"""A shadow check in production: what sparse layers return against the dense result."""
