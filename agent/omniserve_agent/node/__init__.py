"""Assignments in, engine processes up, reports out."""
