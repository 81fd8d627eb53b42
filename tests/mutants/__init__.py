"""Realistic bugs, put into the cluster in memory only, that the catalogue's checkers and criteria must see."""
