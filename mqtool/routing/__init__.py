"""How an exchange chooses queues: topic and header matching, and the field tables they compare.

Shared by the embedded broker and `mqtool route`; imports nothing else of mqtool.
"""
