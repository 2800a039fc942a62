"""Other ways to read the arrays of one computation: recorded, exact, bounded."""
