"""Floating-point operations of training on one picture: six for each multiplication of a weight or of attention.

Two for a multiplication and an addition, three times that for forward and backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

from cxrbase_model.plan import ModelSpec

_PER_PRODUCT = 6


def mae_flops(spec: ModelSpec, image_size: int, mask_ratio: float, channels: int = 1, decode: float = 1.0) -> float:
    """Masked autoencoding: the encoder over the visible patches, the joint decoder over all, or the cross decoder over some."""
    width, depth, _ = spec.shape
    patches, pixels = (image_size // spec.patch_size) ** 2, channels * spec.patch_size**2
    visible = round(patches * (1 - mask_ratio))
    decoded = round(decode * (patches - visible))
    encoder = visible * pixels * width + depth * _block(visible, width)
    own = spec.decoder_width
    block = _cross_block(decoded, visible, own) if spec.decoder == "cross" else _block(patches, own)
    decoder = visible * width * own + spec.decoder_depth * block + decoded * own * pixels
    return _PER_PRODUCT * (encoder + decoder)


def classifier_flops(spec: ModelSpec, image_size: int, findings: int) -> float:
    """Full fine-tuning with mean pooling."""
    width, depth, _ = spec.shape
    patches = (image_size // spec.patch_size) ** 2
    return _PER_PRODUCT * (patches * spec.patch_size**2 * width + depth * _block(patches, width) + width * findings)


def _block(tokens: int, width: int) -> int:
    """Multiplications of a transformer block: query, key, value, projection, two of ratio 4; and the attention itself."""
    return tokens * 12 * width**2 + 2 * tokens**2 * width


def _cross_block(queries: int, features: int, width: int) -> int:
    """The same of queries that look at features and not at each other."""
    return (queries * 10 + features * 2) * width**2 + 2 * queries * features * width
