"""Drawing: what is asked for, under which conditions, from where, and how it is written."""
