"""The help: commands as data (description.py), pages for a terminal (page.py), and texts of topics and recipes."""
