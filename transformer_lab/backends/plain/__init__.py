"""The operations written once, plainly, and their gradients by hand."""
