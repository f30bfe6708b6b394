"""What a layer does beyond N of M by magnitude: criteria, mitigations, parameters."""
