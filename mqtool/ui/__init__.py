"""`mqtool ui`: a page that shows a virtual host's topology, and messages on their way through it.

broker ──events, topology──> records ──NDJSON──> page_server ──> page/*.js, in a browser
"""
