"""A YAML file becomes a checked profile: reading, layers, faults, memo, schema, reference."""
