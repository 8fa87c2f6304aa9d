"""The viewer: what is shown, as numbers; pictures of it; a page in the browser.

`picture` and `session` know no browser. `page` is NiceGUI's: it keeps the state of each tab on this
side and sends only what changes, and serves all its scripts, styles and fonts itself; a test sees
that the page asks no other host. Gradio, the usual choice, wasn't tried here: by what is known of
it, it writes a file for each frame, which a walk at 20 frames a second fills a disk with, and its
pages ask other hosts for fonts and scripts.
"""
