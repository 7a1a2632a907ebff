"""Artificial facts for the cross-lingual knowledge application, as a part of the data stream (paper section 4.2)."""
