"""Where a training's numbers go beside TensorBoard: trackers, each a package of its own.

Keys and passwords never stand here: they come from the environment, as each package looks for them.
"""

import re
from typing import Annotated

from pydantic import Field, field_validator

from mmray.specs.common import Spec

_USER_INFO = re.compile(r"://[^/@\s]+@")
_Name = Annotated[str, Field(min_length=1)]


class WandbRun(Spec):
    """Weights & Biases; `pip install 'mmray[wandb]'`. The key is that of `WANDB_API_KEY` or of
    `wandb login`."""

    project: _Name
    entity: str | None = None
    """Team or user; left out: the key's own."""
    name: str | None = None
    """Of the run; left out: the last part of `output`."""


class MlflowRun(Spec):
    """MLflow; `pip install 'mmray[mlflow]'`. Users and tokens are those of its own environment
    variables."""

    experiment: _Name
    """It is made where there is none."""
    uri: str | None = None
    """Tracking server or database; left out: `MLFLOW_TRACKING_URI`, then MLflow's own choice."""
    name: str | None = None
    """Of the run; left out: the last part of `output`."""

    @field_validator("uri")
    @classmethod
    def _uri_holds_no_secret(cls, value: str | None) -> str | None:
        if value is not None and _USER_INFO.search(value):
            raise ValueError("must hold no user or password: they come from the environment")
        return value


class Track(Spec):
    """Trackers that are told what TensorBoard is told. None of them stops a training."""

    wandb: WandbRun | None = None
    mlflow: MlflowRun | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are asked for; a tracker's name is that of its package."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)
