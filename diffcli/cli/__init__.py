"""The command line: parse, call the engine, print what came of it."""
