"""Who takes part in a comparison: anything that turns token ids into taps."""
