"""What goes wrong, and what is promised all the same."""
