"""Trains the demo encoder from scratch: a small model of open_clip for the world of the demo scene.

Usage: ``python scripts/train_demo_encoder.py --samples FOLDER --minutes 40``. The samples are rendered once (they stay
in the folder); the encoder's files are written to ``divff_nerfstudio/features/demo_encoder``. Prints one JSON object
with the accuracy on a held-out split of the renders.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import torch
import tyro
from demo_encoder_captions import (
    COLOURS,
    IMAGE_NEGATIVES,
    OBJECTS,
    VIDEO_NEGATIVES,
    Captions,
    image_captions,
    things,
    video_captions,
)
from demo_encoder_samples import INPUT, KITCHENS, Samples, load_samples
from jaxtyping import Float, Int, UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from open_clip.tokenizer import bytes_to_unicode
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, normalize

from divff_nerfstudio.features.encoder_loading import CLIP_WEIGHTS, CONFIG, DEMO_ENCODER, MERGES, WEIGHTS

CONTEXT = 16
TEMPERATURE = 10.0
"""Of a query's relevancy; embeddings are trained for it, so that relevancies spread over the whole of 0 to 1."""
MEAN, STD = (0.42, 0.40, 0.37), (0.27, 0.26, 0.26)


@dataclass
class TrainConfig:
    """Options of the training."""

    samples: Path = Path("demo_encoder_samples")
    """Folder of the rendered samples; they are rendered if it has none."""
    kitchens: int = KITCHENS
    """How many random kitchens the samples come from."""
    output: Path = DEMO_ENCODER
    """Folder to write the encoder to."""
    begin_with: Path | None = None
    """Folder of an encoder of the same sizes and captions to go on from; None: from scratch."""
    minutes: float = 40.0
    """How long to train, in minutes of processor time."""
    batch: int = 128
    """Pictures a step."""
    texts: int = 96
    """Captions a step."""
    clips_every: int = 4
    """Every so many-th step is on clips, the others on crops, of which there is more to tell apart."""
    learning_rate: float = 1.5e-3
    """The highest, after the warm-up."""
    warmup: float = 0.05
    """Share of the time in which the learning rate rises."""
    image_width: int = 16
    """Width of the first stage of each image tower, a residual network."""
    image_layers: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Blocks of its stages."""
    text_width: int = 96
    """Width of the text tower, a transformer."""
    text_layers: int = 2
    """Its layers."""
    dimension: int = 64
    """Length of an embedding."""
    merges: int = 900
    """Merges of the vocabulary."""
    positive_weight: float = 5.0
    """Weight of a true pair over that of a false one."""
    contrast: float = 0.3
    """Weight of the contrastive loss beside that of relevancy."""
    naming: float = 0.3
    """Weight of naming kind and colour by linear layers on the embeddings, which are thrown away afterwards."""
    seed: int = 0
    """Of everything random."""


def byte_pair_merges(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """The most frequent pairs of neighbouring symbols, merged one after the other (Sennrich et al. 2016).

    Args:
        texts: Captions, lower case.
        count: Number of merges; fewer, if all words are whole before.

    Returns:
        Pairs of symbols, in open_clip's byte alphabet with ``</w>`` at the end of words.
    """
    alphabet = bytes_to_unicode()
    words = Counter(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    split = {
        word: [*(alphabet[byte] for byte in word.encode()[:-1]), alphabet[word.encode()[-1]] + "</w>"] for word in words
    }
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += int(np.sqrt(words[word])) + 1
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in split.values():
            at = 0
            while at < len(symbols) - 1:
                if (symbols[at], symbols[at + 1]) == best:
                    symbols[at : at + 2] = ["".join(best)]
                at += 1
    return merges


KIND_NAMES = tuple(dict.fromkeys(thing.kind for thing in things()))


class Trainee(torch.nn.Module):
    """The model with its second image tower."""

    def __init__(self, config: TrainConfig, vocabulary: int):
        super().__init__()
        self.vision = {"image_size": INPUT, "width": config.image_width, "layers": list(config.image_layers)}
        self.shape = {
            "embed_dim": config.dimension,
            "vision_cfg": self.vision,
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "width": config.text_width,
                "heads": config.text_width // 32,
                "layers": config.text_layers,
            },
        }
        self.model = open_clip.CLIP(**self.shape)
        self.clip_tower = open_clip.CLIP(**self.shape).visual
        self.kind_heads = torch.nn.ModuleList(torch.nn.Linear(config.dimension, len(KIND_NAMES)) for _ in range(2))
        self.colour_heads = torch.nn.ModuleList(torch.nn.Linear(config.dimension, len(COLOURS)) for _ in range(2))
        self.model.logit_scale.requires_grad_(False).fill_(float(np.log(TEMPERATURE)))

    def load(self, folder: Path) -> None:
        """Takes over an encoder's weights; those of the linear layers that name kinds and colours are not stored."""
        for module, name in ((self.model, WEIGHTS), (self.clip_tower, CLIP_WEIGHTS)):
            module.load_state_dict({key: value.float() for key, value in load_file(folder / name).items()})

    def save(self, folder: Path, merges: Sequence[tuple[str, str]]) -> None:
        """Writes the encoder's files."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "model_cfg": self.shape,
            "preprocess_cfg": {"mean": MEAN, "std": STD},
            "clip_tower": self.vision,
            "clip_length": 4,
            "names": KIND_NAMES,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for module, name in ((self.model, WEIGHTS), (self.clip_tower, CLIP_WEIGHTS)):
            save_file({key: value.half().contiguous() for key, value in module.state_dict().items()}, folder / name)
        write_merges(folder / MERGES, merges)


def write_merges(path: Path, merges: Sequence[tuple[str, str]]) -> None:
    """Writes a vocabulary as open_clip's tokenizer reads it, the same bytes for the same merges."""
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


class Task:
    """One kind of pictures with its captions."""

    def __init__(self, samples: Samples, captions: Captions, negatives: Sequence[str], tokenizer, seed: int):
        self.samples, self.captions = samples, captions
        self.random = np.random.default_rng(seed)
        self.tokens = tokenizer(list(captions.texts))
        self.negatives = tokenizer(list(negatives))
        self.true, self.unknown = torch.from_numpy(captions.true).float(), torch.from_numpy(captions.unknown).float()
        everything = things()
        self.kinds = torch.tensor([[thing.kind == kind for kind in KIND_NAMES] for thing in everything]).float()
        self.colours = torch.tensor([[thing.colour == colour for colour in COLOURS] for thing in everything]).float()
        groups = np.array(captions.groups)
        self.groups = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups)]
        self.true_of = [
            [found for group in self.groups if len(found := group[captions.true[thing, group]])]
            for thing in range(len(captions.true))
        ]
        self.train = np.flatnonzero(~samples.held_out)
        self.held_out = np.flatnonzero(samples.held_out)

    def batch(self, count: int, texts: int) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "T"]]:
        """Random pictures, and captions of which two thirds are true of some of them."""
        pictures = self.random.choice(self.train, count, p=self.samples.weights[self.train])
        chosen = []
        for picture in self.random.permutation(pictures)[: 2 * texts // 3]:
            of = self.true_of[self.samples.things[picture, 0]]
            if of:
                chosen.append(self.random.choice(of[self.random.integers(len(of))]))
        while len(chosen) < texts:
            chosen.append(self.random.choice(self.groups[self.random.integers(len(self.groups))]))
        return pictures, np.unique(chosen)

    def truth(
        self, pictures: Int[np.ndarray, "B"], texts: Int[np.ndarray, "T"]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """To which share each caption is true of each picture, and to which it is known."""
        shares = self.shares(pictures)
        return (shares @ self.true[:, texts]).clamp(0, 1), 1 - (shares @ self.unknown[:, texts]).clamp(0, 1)

    def shares(self, pictures: Int[np.ndarray, "B"]) -> Float[Tensor, "B things"]:
        """Share of each thing in each picture."""
        shares = torch.zeros(len(pictures), len(self.true))
        index = torch.from_numpy(self.samples.things[pictures].astype(np.int64))
        return shares.scatter_add_(1, index, torch.from_numpy(self.samples.shares[pictures].astype(np.float32)))


def prepared(pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[Tensor, "B 3 h w"]:
    """Pictures as the towers take them."""
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    normalised = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return normalised.contiguous(memory_format=torch.channels_last)


def augmented(pictures: UInt8[np.ndarray, "B h w 3"], random: np.random.Generator) -> UInt8[np.ndarray, "B h w 3"]:
    """Other light, other contrast, a little other tint, and noise."""
    values = pictures.astype(np.float32)
    light = random.normal(0, 0.12, (len(pictures), 1, 1, 1)) + random.normal(0, 0.04, (len(pictures), 1, 1, 3))
    noise = random.standard_normal(pictures.shape[1:], np.float32)
    strength = random.uniform(0, 5, (len(pictures), 1, 1, 1)).astype(np.float32)
    changed = values * np.exp(light).astype(np.float32) + strength * noise
    changed += random.normal(0, 5, (len(pictures), 1, 1, 1)).astype(np.float32)
    return np.where(pictures > 0, changed, 0).clip(0, 255).astype(np.uint8)


def losses(
    pictures: Float[Tensor, "B D"],
    texts: Float[Tensor, "T D"],
    negatives: Float[Tensor, "N D"],
    truth: Float[Tensor, "B T"],
    known: Float[Tensor, "B T"],
    config: TrainConfig,
) -> Tensor:
    """Relevancy (LERF) as it will be asked for, against the truth; and which caption belongs to which picture."""
    similarity = TEMPERATURE * pictures @ texts.T
    anchors = TEMPERATURE * pictures @ negatives.T
    weight = known * (1 + (config.positive_weight - 1) * truth)
    relevancy = binary_cross_entropy_with_logits(
        similarity - anchors.amax(-1, keepdim=True), truth, weight, reduction="sum"
    )
    loss = relevancy / weight.sum()
    masked = similarity.masked_fill(known < 0.5, -30)
    for logits, target in ((masked, truth * (known >= 0.5)), (masked.T, (truth * (known >= 0.5)).T)):
        total = target.sum(-1, keepdim=True)
        rows = total[:, 0] > 0.3
        if rows.any():
            contrast = -(target[rows] / total[rows] * log_softmax(logits[rows], dim=-1)).sum(-1).mean()
            loss = loss + config.contrast * contrast / 2
    return loss


def soft_cross_entropy(logits: Float[Tensor, "B classes"], shares: Float[Tensor, "B classes"]) -> Tensor:
    """Cross-entropy against shares of classes; rows whose shares sum to less than a half do not count."""
    total = shares.sum(-1)
    rows = total > 0.5
    if not rows.any():
        return logits.sum() * 0
    return -(shares[rows] / total[rows, None] * log_softmax(logits[rows], dim=-1)).sum(-1).mean()


def train(config: TrainConfig) -> None:
    """Trains, writes the encoder and prints its accuracy."""
    torch.manual_seed(config.seed)
    everything = things()
    about_images, about_videos = image_captions(everything), video_captions(everything)
    merges = byte_pair_merges(
        [*about_images.texts, *about_videos.texts, *IMAGE_NEGATIVES * 99, *VIDEO_NEGATIVES * 99], config.merges
    )
    config.output.mkdir(parents=True, exist_ok=True)
    write_merges(config.output / MERGES, merges)
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(config.output / MERGES), context_length=CONTEXT)
    trainee = Trainee(config, tokenizer.vocab_size)
    if config.begin_with is not None:
        trainee.load(config.begin_with)
    crops, clips = load_samples(config.samples, config.kitchens)
    tasks = (
        Task(crops, about_images, IMAGE_NEGATIVES, tokenizer, config.seed),
        Task(clips, about_videos, VIDEO_NEGATIVES, tokenizer, config.seed + 1),
    )
    trainee.to(memory_format=torch.channels_last)
    towers = (trainee.model.visual, trainee.clip_tower)
    weights = [weight for weight in trainee.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": 0.05},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    start, step, recent = time.process_time(), 0, [0.0, 0.0]
    while (done := (time.process_time() - start) / (60 * config.minutes)) < 1:
        rate = (
            min(done / config.warmup, 0.5 + 0.5 * np.cos(np.pi * done))
            if done < 0.5
            else 0.5 + 0.5 * np.cos(np.pi * done)
        )
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(rate, 0.01)
        which = int(step % config.clips_every == 0)
        task = tasks[which]
        chosen, texts = task.batch(config.batch, config.texts)
        pictures = prepared(augmented(task.samples.pictures[chosen], task.random))
        raw = towers[which](pictures)
        embedded = normalize(raw, dim=-1)
        words = normalize(trainee.model.encode_text(torch.cat([task.tokens[texts], task.negatives])), dim=-1)
        truth, known = task.truth(chosen, texts)
        loss = losses(embedded, words[: len(texts)], words[len(texts) :], truth, known, config)
        shares = task.shares(chosen)
        loss += config.naming * soft_cross_entropy(trainee.kind_heads[which](raw), shares @ task.kinds)
        loss += config.naming * soft_cross_entropy(trainee.colour_heads[which](raw), shares @ task.colours)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        recent[which] = 0.98 * recent[which] + 0.02 * loss.item()
        step += 1
        if step % 200 == 0:
            CONSOLE.print(f"{step} steps, {done:.0%}, losses {recent[0]:.3f} (crops), {recent[1]:.3f} (clips)")
        if step % 1000 == 0:
            trainee.save(config.samples / "checkpoint", merges)
    trainee.eval()
    trainee.save(config.output, merges)
    CONSOLE.print_json(json.dumps({"steps": step, **accuracies(trainee, tasks, tokenizer)}))


@torch.inference_mode()
def accuracies(trainee: Trainee, tasks: Sequence[Task], tokenizer) -> dict[str, float]:
    """On the held-out renders: is the most similar name, colour or action the right one?"""
    encode = lambda phrases: normalize(trainee.model.encode_text(tokenizer(list(phrases))), dim=-1)  # noqa: E731
    everything = things()
    crops, clips = tasks[0], tasks[1]
    shares = crops.samples.shares[crops.held_out, 0]
    main = [everything[i] for i in crops.samples.things[crops.held_out, 0]]
    whole = [
        i for i, (thing, share) in enumerate(zip(main, shares, strict=True)) if share > 0.8 and thing.kind in OBJECTS
    ]
    found = _embedded(trainee.model.visual, crops.samples.pictures[crops.held_out[whole]])
    kinds, colours = list(OBJECTS), list(COLOURS)
    kind = (found @ encode(kinds).T).argmax(-1).tolist()
    coloured = [n for n, i in enumerate(whole) if main[i].colour is not None]
    colour = (found[coloured] @ encode(f"something {c}" for c in colours).T).argmax(-1).tolist()
    result = {
        "held_out_object_crops": len(whole),
        "kind_top1": float(np.mean([kinds[k] == main[i].kind for k, i in zip(kind, whole, strict=True)])),
        "colour_top1": float(
            np.mean([colours[c] == main[whole[n]].colour for c, n in zip(colour, coloured, strict=True)])
        ),
    }
    phrases = {
        "cut": "cut the vegetables",
        "wash": "wash the dishes",
        "cook": "cook the food",
        "open cupboard": "open the cupboard",
    }
    columns = [clips.captions.texts.index(phrase) for phrase in phrases.values()]
    truth, _ = clips.truth(clips.held_out, np.array(columns))
    sure = np.flatnonzero((truth.amax(-1) > 0.6).numpy())
    places = _embedded(trainee.clip_tower, clips.samples.pictures[clips.held_out[sure]])
    action = (places @ encode(phrases.values()).T).argmax(-1)
    result |= {"held_out_clips": len(sure), "action_top1": float((action == truth[sure].argmax(-1)).float().mean())}
    return result


def _embedded(tower: torch.nn.Module, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n D"]:
    return torch.cat(
        [normalize(tower(prepared(part)), dim=-1) for part in np.array_split(pictures, len(pictures) // 256 + 1)]
    )


if __name__ == "__main__":
    train(tyro.cli(TrainConfig))
