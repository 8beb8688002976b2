"""Around the parser: names that options take, help, and what is said of its mistakes."""
