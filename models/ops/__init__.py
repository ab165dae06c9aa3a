"""The operators of the Mamba block.

Each operator is a folder with one module per back end (reference, cpu, triton, package ...); `dispatch` chooses among
them. Nothing here imports other code of the project but `audio_mamba.system`.
"""
