"""Every result is the correctly rounded float32: the same bits on every backend."""
