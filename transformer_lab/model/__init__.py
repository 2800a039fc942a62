"""The decoder as pure functions over a nested dict of parameters; it knows no framework and no files."""
