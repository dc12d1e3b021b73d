"""Predictions, metrics, tables, attention."""
