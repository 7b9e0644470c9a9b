"""Preference pairs in, a better policy out."""
