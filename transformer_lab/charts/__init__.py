"""Pictures of numbers as SVG text, one file per kind. They know nothing of runs, models or files."""
