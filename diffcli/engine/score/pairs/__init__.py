"""Scores of images beside what they should be, or beside what they were drawn under."""
