"""What a cache promises, measured against the forward pass that has none. `lab.verify_cache` and `job=verify_cache`."""
