"""Pretrained encoders as audio embedding models: `RuntimeSSAST` and what surrounds it."""
from hear_api.runtime import RuntimeSSAST

__all__ = ["RuntimeSSAST"]
