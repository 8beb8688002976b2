"""Additions to the parser: the names that options take, help, and messages for mistakes."""
