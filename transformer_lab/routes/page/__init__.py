"""routing.html: `document.py` makes it from its template, which lies beside it, and heat maps."""
