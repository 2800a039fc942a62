"""Norms of the stream, and of queries and keys: one file per kind, chosen by the `norm` group of the configuration."""
