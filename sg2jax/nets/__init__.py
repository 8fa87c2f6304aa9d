"""Pretrained feature networks. Modules know no files, keys or configs."""
