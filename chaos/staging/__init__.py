"""Somebody else's running cluster as a target: what is allowed there, and how it is kept from harm."""
