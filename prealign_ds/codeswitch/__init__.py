"""Input-only code-switching (paper section 3.3, Eq. 5-6): word spans in token streams, and the switcher."""
