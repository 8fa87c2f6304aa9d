"""One file a command: its flags, and a `main` that reads top to bottom.

Tools don't import tools. What several share lies beside them (flags, sheets, videos), or in the
rooms below.
"""

import sys

from sg2jax import cli

# Now, because a package that a tool imports may be missing. What this would change for a program
# that imports tools is how it ends after an error.
sys.excepthook = cli.except_hook
