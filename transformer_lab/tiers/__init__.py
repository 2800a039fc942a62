"""Where blocks of keys and values are kept on the host: in memory (warm) and in files (cold)."""
