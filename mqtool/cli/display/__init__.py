"""Output of commands: lines, tables, trees, charts and live screens."""
