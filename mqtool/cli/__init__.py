"""The command line, and the only package that imports typer.

Each command defines its options, calls one function of another package and prints the result.
"""
