"""What finished and unfinished runs look like: numbers, curves and words on one self-contained HTML page."""
