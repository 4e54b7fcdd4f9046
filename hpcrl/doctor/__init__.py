"""`hpcrl doctor`: whether this place is fit for hpcrl, and what to type where it isn't."""
