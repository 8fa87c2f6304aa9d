"""Metrics of a trained generator: what each name stands for, features of reals and fakes, and what
follows from them.
"""
