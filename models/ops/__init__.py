"""Operators of the Mamba block. This floor imports no other project code."""
