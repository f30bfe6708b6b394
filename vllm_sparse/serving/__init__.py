"""What the API server adds: ``GET /sparsity`` and Prometheus metrics."""
