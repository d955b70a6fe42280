"""What a text-to-image network is told of its prompts: embedded once by the pipeline's own encoders, then read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sims.config import read_as
from sims.data.mapped import Asked, Rows, mapped, may_write, say
from sims.errors import UserError
from sims.files import digest, write_json
from sims.interop.diffusers_folder import listed
from sims.interop.parameterizations import quiet
from sims.interop.text_pipelines import ENCODERS, TextPipeline, content_of

AT_ONCE = 16  # prompts


@dataclass(frozen=True)
class Widths:
    """Of an embedding: tokens, numbers of each, and of the pooled one beside (0 = none)."""

    tokens: int
    width: int
    pooled: int = 0

    @property
    def total(self) -> int:
        return self.tokens * self.width + self.pooled


class Conditioning:
    """The embeddings of prompts, and of the one that stands for no prompt (label -1), in a file of ``cache``.

    ``network`` is the frozen network, which some pipelines ask for the widths of what they leave out.
    """

    def __init__(
        self,
        pipeline: TextPipeline,
        prompts: Sequence[str],
        negative: str,
        cache: Path,
        network: nn.Module,
        log: Callable[[str], None] = say,
    ) -> None:
        self.pipeline, self.prompts, self.negative, self.cache = pipeline, tuple(prompts), negative, cache
        self._network, self._log = network, log
        self._rehearsed: dict[int, np.ndarray] = {}

    @cached_property
    def content(self) -> str:
        """A hash of the encoders, the prompts and what stands for no prompt."""
        folders = [self.pipeline.folder / name for name in ENCODERS]
        inside = content_of(self.cache, *(folder for folder in folders if folder.is_dir()))
        return digest(inside, self.pipeline.kind.pipeline, list(self.prompts), self.negative)[:24]

    def of(self, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Of labels (B,), -1 = none: embeddings (B, tokens, width) and pooled ones (B, pooled), or None."""
        index = torch.where(labels < 0, len(self.prompts), labels).cpu().numpy()
        if len(index) and index.max() > len(self.prompts):
            raise UserError(f"label {int(index.max())} is none of the {len(self.prompts):,} prompts")
        unique, back = np.unique(index, return_inverse=True)
        rows = torch.from_numpy(self._read(unique))[torch.from_numpy(back)].to(device)
        split = self._widths.tokens * self._widths.width
        tokens = rows[:, :split].reshape(len(rows), self._widths.tokens, self._widths.width)
        return tokens, rows[:, split:] if self._widths.pooled else None

    def _read(self, index: np.ndarray) -> np.ndarray:
        """Rows of the table; in a rehearsal, which writes nothing, each is made once."""
        if not isinstance(self._table.array, Asked):
            return self._table[index]
        missing = np.array([i for i in index.tolist() if i not in self._rehearsed], dtype=np.int64)
        if len(missing):
            self._rehearsed |= dict(zip(missing.tolist(), self._table[missing]))
        return np.stack([self._rehearsed[i] for i in index.tolist()])

    @cached_property
    def _widths(self) -> Widths:
        file = self.cache / f"prompts-{self.content}.json"
        if not file.is_file():
            tokens, pooled = self._encoded([], none=True)
            found = Widths(tokens.shape[1], tokens.shape[2], 0 if pooled is None else pooled.shape[1])
            if not may_write():
                return found
            self.cache.mkdir(parents=True, exist_ok=True)
            write_json(file, vars(found))
        return read_as(file, Widths)  # type: ignore[no-any-return]

    @cached_property
    def _table(self) -> Rows:
        """(P + 1, total) float32: every prompt's numbers in one row, the last row is of no prompt."""
        return mapped(
            self.cache,
            lambda: f"prompts-{self.content}",
            (len(self.prompts) + 1, self._widths.total),
            np.dtype("float32"),
            self._rows,
            block=AT_ONCE,
            what=f"embedding {len(self.prompts):,} prompts",
            log=self._log,
        )

    def _rows(self, part: range) -> np.ndarray:
        prompts = [self.prompts[index] for index in part if index < len(self.prompts)]
        tokens, pooled = self._encoded(prompts, none=part.stop > len(self.prompts))
        found = [tokens.flatten(1)] if pooled is None else [tokens.flatten(1), pooled]
        return torch.cat(found, 1).numpy()

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str], none: bool) -> tuple[Tensor, Tensor | None]:
        """Of prompts, and behind them of no prompt where that is asked for."""
        tokens: list[Tensor] = []
        pooled: list[Tensor] = []
        how: dict[str, Any] = {"device": _device(), "num_images_per_prompt": 1}
        if self.pipeline.kind.component == "transformer":
            how |= {"prompt_2": None, "prompt_3": None}
        encoders = self._encoders
        with quiet():
            for prompt in prompts:  # one at a time, so that no prompt's numbers depend on the others'
                found = encoders.encode_prompt(prompt=prompt, do_classifier_free_guidance=False, **how)
                tokens.append(found[0])
                pooled += [found[2]] if self.pipeline.kind.pooled else []
            if none:
                told = {"negative_prompt": self.negative or None}
                found = encoders.encode_prompt(prompt="", do_classifier_free_guidance=True, **told, **how)
                tokens.append(found[1])
                pooled += [found[3]] if self.pipeline.kind.pooled else []
        return torch.cat(tokens).float().cpu(), torch.cat(pooled).float().cpu() if pooled else None

    @cached_property
    def _encoders(self) -> Any:
        """The pipeline with its tokenizers and text encoders."""
        kind, folder = self.pipeline.kind, self.pipeline.folder
        absent = [name for name in ENCODERS if listed(self.pipeline.index, name) is None]
        parts = dict.fromkeys(["vae", "safety_checker", "feature_extractor", "image_encoder", *absent])
        given = {**parts, kind.component: self._network}
        accepted = self.pipeline.pipeline_class._get_signature_types()
        given = {name: part for name, part in given.items() if name in accepted}
        try:
            with quiet(), torch.device("cpu"):
                made = self.pipeline.pipeline_class.from_pretrained(
                    folder, **given, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
                )
        except Exception as error:  # what a library makes of a folder that it does not check can fail in any way
            reason = ascii(" ".join(str(error).split())[:300])[1:-1]
            raise UserError(
                f"the text encoders in {folder} cannot be read ({reason}): the folder needs them, their tokenizers and "
                "weights as safetensors"
            ) from error
        for part in made.components.values():
            if isinstance(part, nn.Module) and part is not self._network:
                part.eval().requires_grad_(False).to(_device())
        made.set_progress_bar_config(disable=True)
        return made

    def release(self) -> None:
        """Let go of the encoders, once all prompts are embedded; prompts that were cut are spoken of."""
        _ = self._table
        encoders = self.__dict__.pop("_encoders", None)
        tokenizer = getattr(encoders, "tokenizer", None)
        if tokenizer is None:
            return
        with quiet():
            lengths = [len(tokenizer(prompt).input_ids) for prompt in self.prompts]
        most = tokenizer.model_max_length
        if cut := sum(length > most for length in lengths):
            self._log(f"{cut:,} of the {len(lengths):,} prompts are longer than {most} tokens, and cut there")


def _device() -> torch.device:
    """Where prompts are embedded, once for all: large encoders take seconds for each on a CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
