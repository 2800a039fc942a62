"""Every value in float64, with how far a sound implementation may be off."""
