"""The paper's argument, reproduced: cells of its tables, its artefacts, its speed.

Used by the tools of the same names, and by nobody else.
"""
