"""The feed-forward networks of a block: one file per kind, chosen by the `ffn` group of the configuration."""
