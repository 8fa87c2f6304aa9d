"""Networks. Modules know no files, keys or configs; `num_ws` and `blocks` are the arithmetic that
they share.
"""
