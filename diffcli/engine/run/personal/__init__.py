"""Runs on a handful of pictures of one thing: what is drawn before their first step."""
