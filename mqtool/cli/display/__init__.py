"""What a terminal shows: lines, tables, trees, charts, screens."""
