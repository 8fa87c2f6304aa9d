"""What a run will cost, before anything runs: compiled for devices that need not be here.

devices.py  what a device has, by data files with their sources
compile.py  the steps, lowered and compiled for it; what the compiler says, cached by content
hlo.py      reads optimized HLO: kernels, bytes, FLOP, collectives
plan.py     the whole of it, in seconds, days and memory
largest.py  the largest batch that fits
"""
