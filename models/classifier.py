"""An encoder with a classification head, and the losses to train it.

Symbols: B clips, T frames, M mel bands, S segments of a clip, F frames of a segment, t time steps, W width of a step's
features, K classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.pooling import pool, pooled_width

EPSILON = 1e-5  # of the head's norm


class Classifier(nn.Module):
    """Pools the features of all segments of a clip over time and maps them to one logit per class.

    Args:
        encoder: gives features in true time order, W = M' * D for each step.
        num_classes: K.
        pooling: "mean", or "mean_std" for mean and standard deviation (divided by t), which makes 2 W.
        frozen: train the head alone; the encoder then runs without gradients.

    Raises:
        ValueError: an unknown pooling.
    """

    def __init__(
        self, encoder: MaskedSpectrogramEncoder, num_classes: int, pooling: str = "mean", frozen: bool = False
    ):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        width = pooled_width(pooling, encoder.grid_size()[1] * encoder.embed_dim)
        linear = nn.Linear(width, num_classes)
        nn.init.zeros_(linear.weight)  # equal probabilities at the start
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.LayerNorm(width, eps=EPSILON), linear)
        # Nothing here depends on them; DistributedDataParallel would wait for their gradients.
        encoder.pred.requires_grad_(False)
        encoder.mask_token.requires_grad_(False)
        if frozen:
            encoder.requires_grad_(False)

    def normalised(self, spectrogram: Tensor, frames: Tensor | None = None) -> Tensor:
        """Pooled features, each clip's brought to mean 0 and variance 1: what the head's linear layer reads at the
        start. Arguments and shape as for `embed`."""
        pooled = self.embed(spectrogram, frames)
        return F.layer_norm(pooled, pooled.shape[1:], eps=EPSILON)

    @torch.no_grad()
    def set_head(self, mean: Tensor, deviation: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Let the head give weight @ ((normalised - mean) / deviation) + bias.

        Args:
            mean, deviation: of each normalised feature, [W] or [2 W].
            weight: [K, W] or [K, 2 W].
            bias: [K].
        """
        values = 1 / deviation, -mean / deviation, weight, bias  # of the norm and of the linear layer
        for parameter, value in zip(self.head.parameters(), values, strict=True):
            parameter.copy_(value)

    def forward(self, spectrogram: Tensor, frames: Tensor | None = None) -> Tensor:
        """Logits of clips.

        Args:
            spectrogram: normalised log-mels in the order of time, [B, 1, T, M].
            frames: lengths of the clips, int64 [B], where some are padded; None if all are T frames long.

        Returns:
            [B, K].
        """
        pooled = self.embed(spectrogram, frames)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)

    def embed(self, spectrogram: Tensor, frames: Tensor | None = None) -> Tensor:
        """Pooled features of clips, [B, W] or [B, 2 W]; arguments as for `forward`."""
        return self._embed_whole(spectrogram) if frames is None else self._embed_padded(spectrogram, frames)

    def _embed_whole(self, spectrogram: Tensor) -> Tensor:
        """`embed` of clips of one length, without shapes that depend on values, for torch.export."""
        x = self._segments(spectrogram)  # [B, 1, S, F, M]
        batch, _, segments, length, _ = x.shape
        steps = -(-spectrogram.shape[2] * self.encoder.grid_size()[0] // length)  # t
        x = x.transpose(1, 2).flatten(0, 1)  # -> [B*S, 1, F, M]
        rows = self.encoder.forward_features(self.encoder.from_time_first(x), "bands").float()
        rows = rows.unflatten(0, (batch, segments)).flatten(1, 2)[:, :steps]  # [B, t, W]
        return pool(rows, self.pooling)

    def _embed_padded(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        """`embed` of clips of their own lengths; the encoder reads each segment of only those clips that reach it."""
        x = self._segments(spectrogram)  # [B, 1, S, F, M]
        batch, _, segments, length, _ = x.shape
        per_segment = self.encoder.grid_size()[0]
        steps = -(-frames * per_segment // length)  # [B], t of each clip
        parts = []  # of each segment: the clips that reach it, their features, and which of them are within the clip
        for segment in range(segments):
            left = steps - segment * per_segment
            clips = (left > 0).nonzero()[:, 0]
            most = min(per_segment, int(left.max()))
            if most <= 0:
                break  # the rest is padding of all clips
            rows = self.encoder.forward_features(self.encoder.from_time_first(x[clips, :, segment]), "bands", most)
            parts.append((clips, rows.float(), torch.arange(most, device=x.device) < left[clips, None]))

        zeros = parts[0][1].new_zeros(batch, parts[0][1].shape[2])  # [B, W]
        total = zeros
        for clips, rows, inside in parts:
            total = total.index_add(0, clips, (rows * inside[..., None]).sum(dim=1))
        mean = total / steps[:, None]
        if self.pooling == "mean":
            return mean
        total = zeros
        for clips, rows, inside in parts:
            squares = (rows - mean[clips][:, None]).square()
            total = total.index_add(0, clips, (squares * inside[..., None]).sum(dim=1))
        variance = total / steps[:, None]
        return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], dim=1)  # the root of 0 has no gradient

    def _segments(self, spectrogram: Tensor) -> Tensor:
        """[B, 1, T, M] -> [B, 1, S, F, M], the last segment filled up with zeros."""
        length, longest = self.encoder.num_frames, spectrogram.shape[2]
        segments = -(-longest // length)
        padded = F.pad(spectrogram, (0, 0, 0, segments * length - longest))
        return padded.unflatten(2, (segments, length))

    def layer_of(self, name: str) -> int:
        """The layer of a parameter: 0 for patches and class token, i + 1 for the encoder's layer i of blocks, and
        `last_layer` for what follows."""
        parts = name.split(".")
        if parts[0] == "encoder" and parts[1] == "blocks":
            return int(parts[2]) // self.encoder.blocks_per_layer + 1
        after = parts[0] == "head" or parts[1] == "encoder_norm"
        return self.last_layer if after else 0

    @property
    def last_layer(self) -> int:
        """The layer of the norm after the blocks and of the head."""
        return self.encoder.depth // self.encoder.blocks_per_layer + 1

    def parameter_groups(self, weight_decay: float, layer_decay: float, head_rate: float = 1.0) -> list[dict]:
        """The trainable parameters for AdamW, with the factor of each group's learning rate as "scale".

        Args:
            weight_decay: of all but vectors and biases.
            layer_decay: factor of the rate from each layer to the one before it (Clark et al. 2020; BEiT, MAE).
            head_rate: factor of the head's rate.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decay = 0.0 if parameter.ndim <= 1 or name.endswith(".bias") else weight_decay
                head = head_rate if name.startswith("head.") else 1.0
                scale = head * layer_decay ** (self.last_layer - self.layer_of(name))
                groups.setdefault((scale, decay), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (scale, decay), parameters in groups.items()
        ]


def classification_loss(logits: Tensor, target: Tensor, label_mode: str, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy for one label per clip ("single"), or the mean over classes of binary cross-entropy ("multi").

    Args:
        logits: [B, K].
        target: float [B, K], 1 for the labels of a clip; in a mixture of clips, their shares.
        label_mode: "single" or "multi".
        smoothing: label smoothing (Szegedy et al. 2016), in [0, 1): moves this share of each target to all classes, or
            for several labels to 0.5.
    """
    logits = logits.float()
    if label_mode == "single":
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    smooth = target * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smooth)


def probabilities(logits: Tensor, label_mode: str, temperature: float = 1.0) -> Tensor:
    """Logits [..., K] -> probabilities: they add up to 1 ("single"), or each is by itself ("multi")."""
    scaled = logits.float() / temperature
    return scaled.softmax(dim=-1) if label_mode == "single" else scaled.sigmoid()


def fit_temperature(logits: Tensor, target: Tensor, label_mode: str) -> float:
    """The temperature that makes the probabilities of held-out clips most likely (Guo et al. 2017), 0.05 to 20.

    logits, target: [n, K]. The loss is convex in 1 / temperature; golden-section search on its logarithm finds it.
    One more clip counts with the n, whose labels are equally likely (Platt 1999 smooths targets likewise): otherwise a
    few clips without an error would make everything certain.
    """
    logits, target = logits.double(), target.double()
    nothing = 1 / target.shape[1] if label_mode == "single" else 0.5
    target = (len(target) * target + nothing) / (len(target) + 1)

    def at(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if label_mode == "single":
            return float(F.cross_entropy(scaled, target))
        return float(F.binary_cross_entropy_with_logits(scaled, target))

    low, high, ratio = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if at(left) <= at(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
