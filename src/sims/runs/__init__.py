"""A run is a directory: what is kept there, and what is drawn and measured in it."""
