"""report.html: `document.py` makes it from its template, which lies beside it, and the figures of `charts.py`."""
