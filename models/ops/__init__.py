"""The operators of the encoders: those of the Mamba block, the mLSTM, and linear layers.

Each operator is a folder with one module per back end (reference, cpu, triton, package ...); `dispatch` chooses among
them. Nothing here imports other code of the project but `audio_mamba.system`.
"""
