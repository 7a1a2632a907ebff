"""The alignment table and the alignment-init stage (paper section 3.1 and 3.2, Eq. 1-4)."""
