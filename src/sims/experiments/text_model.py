"""A text-to-image model in an experiment: its prompts, and what it is sampled by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sims.data.captions import Captions, captions_of, held_out, read_prompts
from sims.data.dataset import Dataset
from sims.data.sources import BUILT_IN
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.guidance.guide import innermost
from sims.interop.text_to_image import open_text_to_image
from sims.methods import AuxiliarySettings
from sims.metrics.extractors import Extractor
from sims.metrics.pretrained import ClipExtractor
from sims.model import Model
from sims.sampling.noise import checked_shares
from sims.scoring.fidelity import Asked


@dataclass(frozen=True)
class Prompted:
    """A text-to-image model, and the class (P,) of every prompt, -1 = none; None without captions that have classes.

    ``held_out`` are the shares (P,) by which the prompts that were kept back are drawn; () where none was.
    """

    model: Model
    folder: Path
    prompts: tuple[str, ...]
    classes: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    held_out: tuple[float, ...] = ()

    def classes_in(self, data: Dataset | None) -> np.ndarray | None:
        """The class (P,) of every prompt by the numbers that data have for classes of their names, -1 = none."""
        if self.classes is None or data is None or data.labels is None:
            return None
        number = {name: index for index, name in enumerate(data.class_names)}
        names = self.class_names or tuple(map(str, range(int(self.classes.max()) + 1)))
        found = np.array([*(number.get(name, -1) for name in names), -1])
        return found[self.classes]

    def asked(self, data: Dataset | None, extractor: Extractor) -> Asked | None:
        """What the prompts ask for, as far as an extractor can tell; None where it cannot."""
        classes = self.classes_in(data)
        embedded = None
        if isinstance(extractor, ClipExtractor):  # the tokenizer of most pipelines is CLIP's
            tokenizer = extractor.folder if extractor.has_tokenizer else self.folder / "tokenizer"
            embedded = extractor.text_features(self.prompts, tokenizer)
        if classes is None and embedded is None:
            return None
        return Asked(classes, embedded, () if data is None or classes is None else data.class_names)


def open_prompted(options: ImproveOptions, device: torch.device, log: Callable[[str], None]) -> Prompted:
    """The model that is to be made better, with the prompts of a file or the captions of the data.

    Errors: UserError where there are no prompts, or for options that such a model has no use for.
    """
    assert options.model is not None
    for name in ("vae", "weights", "trusted"):
        if getattr(options, name) is not None:
            raise UserError(f"{options.model} draws pictures of texts: leave out option {name!r}")
    if options.text.weights == "fp16" and device.type == "cpu":
        raise UserError("text.weights is fp16: it needs a GPU, choose bf16 or fp32 on a CPU")
    if options.auxiliary.init != AuxiliarySettings().init:
        raise UserError(f"auxiliary.init is {options.auxiliary.init!r}, and a LoRA begins at the base: leave it out")
    data, captions = options.data, Captions(())
    if data.path in BUILT_IN:
        raise UserError(
            f"{options.model} draws pictures of texts, and data.path is {data.path!r}: give captioned pictures, or "
            "none, with a file of prompts as option 'prompts'"
        )
    if data.path != "none" and (options.prompts is None or not data.path.startswith("hf:")):
        captions = _captions(options)
    elif options.prompts is None:
        raise UserError(
            f"{options.model} draws pictures of texts, and there are none: give a file of prompts with option "
            "'prompts', or captioned pictures with data.path"
        )
    prompts = captions.distinct if options.prompts is None else read_prompts(options.prompts)
    model = open_text_to_image(options.model, prompts, options.text, data.source.folder, log)
    shares = captions.shares(prompts) if options.prompts is None else ()  # drawn as often as the data have them
    back: tuple[float, ...] = ()
    kept = held_out(prompts, options.text.held_out)
    if kept.any():
        log(f"{kept.sum():,} of {len(prompts):,} prompts are kept out of synthesis, training and search")
        every = np.array(shares or [1.0] * len(prompts))
        shares, back = every * ~kept, checked_shares(every * kept, len(prompts))
    innermost(model.denoiser).class_shares = checked_shares(shares, len(prompts))
    classes = captions.classes(prompts)
    known = classes if len(classes) and (classes >= 0).any() else None
    return Prompted(model.to(device), options.model, prompts, known, captions.class_names, back)


def _captions(options: ImproveOptions) -> Captions:
    """The captions of the data; none where prompts are given and the data have no captions."""
    data = options.data
    try:
        return captions_of(data.path, data.source, options.text.column)
    except UserError:
        if options.prompts is None or options.text.column is not None:
            raise
        return Captions(())
