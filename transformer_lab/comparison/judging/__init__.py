"""What participants show, held against the truth and its bounds."""
