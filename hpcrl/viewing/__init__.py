"""Looking at runs from their files alone: tables, a terminal view, pictures and a page."""
