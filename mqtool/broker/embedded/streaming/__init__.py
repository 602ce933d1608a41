"""The stream protocol: frames to what a stream's log does.

Beside wire/, and like it on top of model/; imported only when a stream port is asked for.
"""
