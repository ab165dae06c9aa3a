"""The encoder of SSAMBA (Shams et al. 2024, arXiv 2405.11831) as its published training script sets it up."""

from typing import Any

from torch import Tensor

from audio_mamba.models.checks import check_whole
from audio_mamba.models.ssam import MambaSSAST


class SSAMBA(MambaSSAST):
    """MambaSSAST whose blocks work in pairs. Arguments as for `MambaSSAST`; those of the published models are in
    `hear_api.convert`.

    Both blocks of a pair read the same tokens and the same residual stream. Their outputs are summed, and so are their
    streams, which doubles the stream with each pair. The final norm is applied twice. In the published code the second
    block of a pair reads the tokens from the last to the first. With blocks that walk both ways that is the same as
    swapping the weights of their two paths, which `hear_api.convert` does, so here both read them in the same order.

    Raises:
        ValueError: an odd depth.
    """

    blocks_per_layer = 2

    def __init__(self, embed_dim: int = 768, depth: int = 24, direction: str = "both", **arguments: Any):
        check_whole("depth", depth)
        if depth % 2:
            raise ValueError(f"the blocks of SSAMBA work in pairs, so depth must be even, got {depth}")
        super().__init__(embed_dim, depth, direction=direction, **arguments)
        self.carries_state = False  # `step` does not know pairs

    def forward_blocks(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = tokens
        residual: Tensor | None = None
        blocks = list(self.blocks)
        for first, second in zip(blocks[::2], blocks[1::2], strict=True):
            output, stream = self.run_block(first, hidden, residual)
            other_output, other_stream = self.run_block(second, hidden, residual)
            hidden, residual = output + other_output, stream + other_stream
        return self.encoder_norm(self._final_norm(hidden, residual))
