"""Files of other programs: read as data, never run.

sniff         what a file is
network_file  its networks: arrays under their own names, and arguments; with pickle_reader,
              numpy_pickle and torch_file for the bytes
names         names and layouts of parameters
arguments     what the arguments of their constructors mean
architecture  sizes, from the arrays
read, write   the whole: to a run of ours, and from one
"""
