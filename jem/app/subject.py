"""What the page asks of a model: pictures in and out, a verdict in words, the nearest examples."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor

from jem.checks import refuse
from jem.data.columns import decode
from jem.data.images import load_image
from jem.data.splits import DataSplits
from jem.model import JEM
from jem.plotting import Figure, image_bytes, score_histograms
from jem.serving.scorer import Scorer

SHOWN_SIDE = 280
"""Pixels a side of a picture on the page, about: small images are enlarged without smoothing."""

NEAREST = 6
"""Training examples shown beside an input."""

COMPARED = 5_000
"""Training examples among which the nearest are sought, at most."""


@dataclass
class Subject:
    """A model on the page.

    Attributes:
        name: What the page calls it.
        scorer: Model, detector and temperature.
        splits: Its data; None if they are not at hand, and the page then goes without examples.
    """

    name: str
    scorer: Scorer
    splits: DataSplits | None = None

    @property
    def model(self) -> JEM:
        """The model that classifies and scores."""
        return self.scorer.model

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.model.input_shape or ()

    @property
    def classes(self) -> list[str]:
        """Names of the classes; numbers where they have none."""
        return [str(name) for name in self.model.classes or ()]

    # -- inputs -----------------------------------------------------------------------------------

    def ground(self) -> float:
        """The value of the borders of images, in the network's units: where nothing is drawn."""
        low, _ = self.model.bounds("cpu") or (torch.tensor(-1.0), None)
        if self.splits is None:
            return float(low.min())
        x = self.splits.test[:200][0]
        return float(torch.cat([x[..., 0, :], x[..., -1, :]], dim=-1).median())

    def from_strokes(self, ink: np.ndarray) -> Tensor:
        """An input of what somebody drew.

        Args:
            ink: Opacity of the strokes, bytes, shape (height, width).

        Returns:
            An input (1, *shape): strokes on the ground of the data, in the value farthest from it.
        """
        _, height, width = self.shape
        small = Image.fromarray(ink).resize((width, height), Image.Resampling.BOX)
        share = torch.from_numpy(np.asarray(small, np.float32) / 255)
        low, high = (b.cpu() for b in self.model.bounds() or (torch.tensor(-1.0), torch.tensor(1)))
        ground = self.ground()
        middle = float((low + high).mean()) / 2
        far = float(high.max() if ground < middle else low.min())
        return (ground + share * (far - ground)).expand(1, *self.shape).clone()

    def from_file(self, file: Path) -> Tensor:
        """An input of an image file: scaled to cover the shape, the middle cut out.

        Args:
            file: Any image; a model of grey images sees it in grey.

        Returns:
            An input (1, *shape).

        Raises:
            InputError: If this is no image, it is damaged, or it is larger than can be read.
        """
        channels, height, width = self.shape
        image = load_image(file).convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).reshape(1, height, width, channels)
        scaling = self.model.scaling
        if scaling is None:  # the network's own units
            return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        return scaling.for_bytes()(pixels)

    def rows(self) -> pd.DataFrame:
        """Test rows of a table in the user's columns and units, 1,000 at most."""
        scaling, splits = self.model.scaling, self.splits
        if scaling is None or splits is None:
            refuse(self.name, "have its table at hand, for the ranges of columns", "none")
        raw = scaling.invert(splits.test[:1000][0]).numpy()
        if scaling.encoding is not None:
            return decode(scaling.encoding, raw)
        names = self.model.columns or [f"column {i}" for i in range(raw.shape[1])]
        return pd.DataFrame(raw, columns=list(names))

    def from_row(self, row: dict[str, Any]) -> Tensor:
        """An input (1, D) of the values of a row, by the names of their columns."""
        frame = pd.DataFrame([row])
        encoded = self.model.scaling is not None and self.model.scaling.encoding is not None
        return self.model.preprocess(frame if encoded else frame.to_numpy(float))

    # -- answers ----------------------------------------------------------------------------------

    def answer(self, x: Tensor) -> tuple[dict[str, float], str, Figure]:
        """What the model says of one input (1, *shape).

        Returns:
            Calibrated probabilities by class, a verdict of two sentences (Markdown), and a figure:
            where the score lies among those of the calibration inputs.
        """
        found, detector = self.scorer.predict(x), self.scorer.detector
        probabilities = dict(
            zip(self.classes, found.calibrated_probabilities[0].tolist(), strict=True)
        )
        p, n = float(found.p_value[0]), detector.num_calibration
        if found.is_ood[0]:
            why = found.reason[0].replace("both", "unlike the data, and between classes")
            verdict = f"### Rejected: {why}\n"
        else:
            verdict = f"### Accepted as {self.classes[int(found.class_index[0])]}\n"
        verdict += (
            f"{p:.1%} of {n:,} inputs like the training data score as low as this or lower. "
        )
        verdict += f"Below {1 - (detector.acceptance_rate or 0):.0%} an input is rejected. "
        verdict += f"Log-density: {float(found.log_density[0]):.2f} nats."
        columns = self.scorer.foreign_columns(x)[0] if self.model.base is not None else ()
        if found.is_ood[0] and columns:
            verdict += f" Unlikely columns: {', '.join(columns)}."
        scores = detector.state_dict()["calibration"]
        figure = score_histograms(scores, {"this input": found.score.cpu()}, detector.threshold)
        return probabilities, verdict, figure

    def nearest(self, x: Tensor) -> list[tuple[Any, str]]:
        """The nearest training examples by Euclidean distance, as pictures with their class."""
        if self.splits is None:
            return []
        inputs, labels = self.splits.train[:COMPARED]
        order = torch.cdist(x.flatten(1), inputs.flatten(1))[0].argsort()[:NEAREST]
        return [(self.picture(inputs[i : i + 1]), self.classes[int(labels[i])]) for i in order]

    def picture(self, x: Tensor) -> Image.Image:
        """An input (1, C, H, W) as a picture, enlarged if it is small."""
        bounds = self.model.bounds("cpu") or (x.min(), x.max())
        image = Image.open(io.BytesIO(image_bytes(x, bounds, columns=1)))
        times = max(1, SHOWN_SIDE // max(image.size))
        return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
