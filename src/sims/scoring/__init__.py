"""Scoring: how far samples are from real data, with what it was measured with."""
