"""What was found: in a sentence, as plain data, on the console and as a page."""
