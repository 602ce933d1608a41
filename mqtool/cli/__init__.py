"""The command line: the only package that imports typer. A command is its options, one call, and a renderer."""
