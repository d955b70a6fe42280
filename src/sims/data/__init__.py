"""Data sets, where they come from, and the store of synthetic samples."""
