"""What a joint model is made of, as the `config.json` of its checkpoint: plain JSON throughout.

`mmray.encoders.joint` writes it from a spec, after looking into the towers' own files; nothing here
reads a file.
"""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

ORDER = ("image", "text", "audio", "video")
"""Of modalities, wherever they stand side by side."""


class JointConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Settings of a joint model. Each tower says its `kind`, its number of `features`, how it is
    tuned (`train`), and what it wants to be given."""

    model_type: ClassVar[str] = "mmray-joint"

    dim: int = 256
    towers: dict[str, dict[str, Any]] | None = None
    """Modality to the settings of its tower."""
    fusion: dict[str, Any] | None = None
    heads: dict[str, dict[str, Any]] | None = None
    dropout: float = 0.0
    modality_dropout: float = 0.0
    augment: dict[str, float] | None = None
    adversarial: dict[str, Any] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that have towers, in the order of vectors."""
        return tuple(each for each in ORDER if each in (self.towers or {}))
