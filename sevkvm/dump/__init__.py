"""Dump files: a pure layout and one writer a format."""
