"""Measurements: how fast hpcrl is, and how flat its memory stays. Tests time nothing; these do."""
