"""One file a command: its flags, and a `main` that reads top to bottom.

Tools don't import tools. What several share lies beside them (flags, sheets, videos), or in the
rooms below.
"""
