"""report.html, one self-contained page: a file for each of its sections, from a report's dict alone.

`document.py` puts the sections together; `html.py` and `cells.py` have the pieces that they are made of.
"""
