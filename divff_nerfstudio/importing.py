"""``divff import``: a run of `divff-paper` from a checkpoint of NeuralDiff or of the published DIV-FF."""

from __future__ import annotations

import copy
import math
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import yaml
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.checkpoints import require_shapes
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.features.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from divff_nerfstudio.features.store import (
    IMPORTED,
    NO_FEATURE,
    FeatureStore,
    FeatureWriter,
    FrameFeatures,
    StoreHeader,
    stores_of,
)
from divff_nerfstudio.fields.published_checkpoint import PublishedCheckpoint, read_published
from divff_nerfstudio.fields.published_heads import HIDDEN_LAYERS
from divff_nerfstudio.locks import locked
from divff_nerfstudio.models.paper import PublishedModelConfig
from divff_nerfstudio.pipeline import DivFFPipeline
from divff_nerfstudio.registry import divff_paper
from divff_nerfstudio.relevancy import PUBLISHED_NEGATIVES
from divff_nerfstudio.run_config import read_config
from divff_nerfstudio.schema import Words
from divff_nerfstudio.trainer import DivFFTrainerConfig

CONFIG, MODELS, FEATURES, AUTOENCODER = "config.yml", "nerfstudio_models", "features", "autoencoder.pth"
NEURALDIFF_EPSILON = 1e-20
"""Stands for nothing being added to the summed density; see `PublishedModelConfig.share_epsilon`."""
_VIEWS, _VIEW_PIXELS = 4, 400


class ImportRefusedError(DivffError):
    """A checkpoint does not fit the scene or the autoencoder, or the run would replace another one."""


@dataclass
class ImportConfig:
    """Makes a run of the method divff-paper of a checkpoint of NeuralDiff or DIV-FF, for ns-eval, ns-render, ns-viewer,
    and ns-train, which trains semantic heads on a checkpoint of geometry alone and goes on with one that has heads."""

    checkpoint: tyro.conf.Positional[Path]
    """The file that was published: what PyTorch-Lightning has written, or its state_dict."""
    scene: Path
    """Folder of the scene that it was trained on."""
    output: Path
    """Folder of the run; it must not exist yet."""
    autoencoder: Path | None = None
    """The scene's autoencoder (best_ckpt.pth), which turns rendered codes into embeddings that text is held against."""
    image_encoder: Words = "ViT-B-16/laion2b_s34b_b88k"
    """Text encoder of the image features: any that `divff extract --encoder` takes."""
    video_encoder: Words = "egovideo"
    """Text encoder of the video features: egovideo, a file of EgoVideo's weights, or as for the image features."""
    video_dir: Path | None = None
    """Folder of the video's frames, if it is not SCENE/high_res_video."""

    def main(self) -> Path:
        """Writes the run, whole or not at all.

        Returns:
            Its folder.

        Raises:
            DivffError: If the checkpoint is none, or does not fit the scene or the autoencoder, or the folder exists.
        """
        run = self.output.absolute()
        busy = ImportRefusedError(f"Another import writes {run}: wait for it, or choose another --output.")
        with locked(run, busy, keep=False):
            published, scene = self._imported(run)
        self._tell(run, published, scene)
        return run

    def _imported(self, run: Path) -> tuple[PublishedCheckpoint, SceneFolder]:
        """Writes the run `run`, and returns of what."""
        if run.exists():
            raise ImportRefusedError(f"{run} exists: choose another --output, or remove it.")
        published = read_published(self.checkpoint)
        autoencoder = None if self.autoencoder is None else load_autoencoder(self.autoencoder)
        scene = load_scene(self.scene, video_dir=self.video_dir)
        self._require_fit(published, autoencoder, scene)
        with atomic_path(run) as unfinished:
            try:
                self._write(unfinished, run, published, autoencoder, scene)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        return published, scene

    def _require_fit(self, published: PublishedCheckpoint, autoencoder: Autoencoder | None, scene: SceneFolder) -> None:
        """Refuses a scene or an autoencoder of another checkpoint."""
        max_id = int(scene.frame_ids[-1])
        if max_id >= published.rows:
            raise ImportRefusedError(
                f"{scene.root / 'meta.json'} has frame id {max_id}, which has no row among the {published.rows} rows "
                f"of the tables in {published.path}: give the scene that it was trained on."
            )
        if autoencoder is None:
            return
        codes = published.dimensions.get("image")
        if codes is not None and codes != autoencoder.code_dim:
            raise ImportRefusedError(
                f"{self.autoencoder} has codes of {autoencoder.code_dim} values where the image heads of "
                f"{published.path} give {codes}: give the autoencoder of the same scene and training."
            )

    def _write(
        self, into: Path, run: Path, published: PublishedCheckpoint, autoencoder: Autoencoder | None, scene: SceneFolder
    ) -> None:
        """Writes the run's files into a folder that will take the place `run`."""
        (into / MODELS).mkdir(parents=True)
        config = self._config(run, published, autoencoder, scene)
        data: Any = config.pipeline.datamanager
        headers = self._headers(published, autoencoder, scene)
        blank = bool(headers) and not _has_targets(scene, headers)
        if blank:
            data.feature_dir = into / FEATURES
            _write_stores(data.feature_dir, headers, {})
        if headers:
            self._settle(config, published)
        opened = copy.deepcopy(config.pipeline)
        if not headers:
            opened.datamanager.features = "none"
        pipeline = opened.setup(device="cpu", test_mode="test")
        step = (published.step or 0) - 1 if headers else -1
        _load(pipeline, published, autoencoder, max(step, 0))
        if autoencoder is not None:
            save_autoencoder(autoencoder, into / AUTOENCODER)
        if blank:
            _write_stores(data.feature_dir, headers, _rendered_features(pipeline))
            data.feature_dir = run / FEATURES
        imported = {"step": step, "pipeline": pipeline.state_dict(), "optimizers": {}, "schedulers": {}, "scalers": {}}
        torch.save(imported | {"random": {}}, into / MODELS / f"step-{max(step, 0):09d}.ckpt")
        (into / CONFIG).write_text(yaml.dump(config), encoding="utf-8")
        read_config(into / CONFIG, [divff_paper.config])

    def _config(
        self, run: Path, published: PublishedCheckpoint, autoencoder: Autoencoder | None, scene: SceneFolder
    ) -> DivFFTrainerConfig:
        """The configuration of the run, its schedule not settled yet."""
        config = copy.deepcopy(divff_paper.config)
        assert isinstance(config, DivFFTrainerConfig)
        config.run_dir, config.load_dir, config.experiment_name = run, run / MODELS, scene.name
        model, data = config.pipeline.model, config.pipeline.datamanager
        assert isinstance(model, PublishedModelConfig)
        model.fields, model.heads = published.field_config, published.heads_config
        model.schedule.stages = "heads"
        if not published.dimensions:
            model.share_epsilon = NEURALDIFF_EPSILON
        if autoencoder is not None:
            model.autoencoder, model.autoencoder_sizes = run / AUTOENCODER, autoencoder.config
        parser: Any = data.dataparser
        parser.data, parser.time_rows = scene.root.absolute(), published.rows
        parser.video_dir = None if self.video_dir is None else self.video_dir.absolute()
        data.data, data.features = parser.data, "auto"
        return config

    @staticmethod
    def _settle(config: DivFFTrainerConfig, published: PublishedCheckpoint) -> None:
        """Settles the schedule; a checkpoint that has all of its epochs behind it gets one more."""
        data, done = config.pipeline.datamanager, published.step or 0
        schedule: Any = config.pipeline.model.schedule  # pyright: ignore[reportAttributeAccessIssue]
        (pixels, _), rays = data.survey(), data.train_num_rays_per_batch or PublishedModelConfig.rays_per_step
        epochs = done / math.ceil(pixels / rays)
        if epochs >= schedule.heads_epochs:
            schedule.heads_epochs = math.ceil(epochs) + 1
        config.settle()

    def _headers(
        self, published: PublishedCheckpoint, autoencoder: Autoencoder | None, scene: SceneFolder
    ) -> dict[str, StoreHeader]:
        """What the heads' features are and which text encoders speak their language, by kind."""
        dimensions = dict(published.dimensions)
        entries: dict[str, dict[str, Any] | None] = {"video": self._video_entry()}
        if "image" in dimensions and autoencoder is not None:
            dimensions["image"] = autoencoder.feature_dim
            entries["image"] = {"encoder": _place(self.image_encoder), "normalise": True}
        return {
            kind: StoreHeader(
                kind=kind,
                source=IMPORTED,
                model=str(published.path.absolute()),
                fingerprint="",
                dimension=dimension,
                frame_ids=scene.frame_ids.tolist(),
                image_size=[scene.height, scene.width],
                text_encoder=entries.get(kind),
                negatives=list(PUBLISHED_NEGATIVES.get(kind, ())),
                shared_index=True,
            )
            for kind, dimension in dimensions.items()
        }

    def _video_entry(self) -> dict[str, Any]:
        """How to build the video features' text encoder, whose embeddings keep their length, as in DIV-FF."""
        if self.video_encoder == "egovideo" or Path(self.video_encoder).is_file():
            weights = None if self.video_encoder == "egovideo" else _place(self.video_encoder)
            return {"family": "egovideo", "weights": weights, "vocabulary": None, "frames": 4, "normalise": False}
        return {"encoder": _place(self.video_encoder), "normalise": False}

    def _tell(self, run: Path, published: PublishedCheckpoint, scene: SceneFolder) -> None:
        """Says what there is, and what can be typed next."""

        def tell(text: str) -> None:
            CONSOLE.print(text, soft_wrap=True, markup=False, highlight=False)

        config = ("--load-config", str(run / CONFIG))
        lines = [
            ("ns-eval", *config, "--output-path", str(run / "eval.json")),
            ("ns-render", "dataset", *config, "--rendered-output-names", "rgb", "mask_moving"),
            ("ns-viewer", *config, "--viewer.websocket-host", "127.0.0.1"),
        ]
        if published.dimensions:
            steps = "no number of steps" if published.step is None else f"{published.step} steps"
            kinds = ", ".join(published.dimensions)
            tell(f"{run} holds geometry and heads for {kinds} features ({steps} in the checkpoint).")
            if "image" in published.dimensions and self.autoencoder is None:
                tell("Image features are codes, which text can be held against with --autoencoder only.")
            lines.append(("ns-train", "divff-paper", *config))
        else:
            tell(f"{run} holds geometry alone; ns-train puts new heads on it, for which the scene needs features.")
            lines += [("divff", "extract", "--data", str(scene.root)), ("ns-train", "divff-paper", *config)]
        tell("Next:")
        for line in lines:
            tell("  " + shlex.join(line))


def _place(name: str) -> str:
    """An encoder's name; that of a file or folder so that it is found from everywhere."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _has_targets(scene: SceneFolder, headers: dict[str, StoreHeader]) -> bool:
    """Whether the scene's own features are what the heads were trained on: kinds, lengths and text encoders."""
    found = stores_of(scene.root)
    if found.keys() & HIDDEN_LAYERS.keys() != headers.keys():
        return False
    for kind, header in headers.items():
        own = FeatureStore.open(found[kind]).header
        if own.dimension != header.dimension or own.decoder is not None:
            return False
        wanted, given = header.text_encoder or {}, own.text_encoder or {}
        if any(wanted.get(key) != given.get(key) for key in ("family", "encoder")):
            return False
    return True


def _write_stores(folder: Path, headers: dict[str, StoreHeader], rows: dict[str, Tensor]) -> None:
    """Writes stores in which no place of any frame has a feature, in place of those that are there.

    Args:
        folder: Folder of the stores.
        headers: Their headers by kind.
        rows: Features, (n, dimension), that stand in the table for colours to be chosen by, by kind.
    """
    nowhere = np.full((1, 1), NO_FEATURE, np.uint16)
    for kind, header in headers.items():
        shutil.rmtree(folder / kind, ignore_errors=True)
        with FeatureWriter(folder / kind, header, overwrite=True) as writer:
            for frame in range(len(header.frame_ids)):
                known = rows.get(kind) if frame == 0 else None
                table = np.zeros((0, header.dimension), np.float16) if known is None else known.half().numpy()
                writer.append(FrameFeatures(nowhere, table))
            writer.finish()


def _load(pipeline: DivFFPipeline, published: PublishedCheckpoint, autoencoder: Autoencoder | None, step: int) -> None:
    """Puts a checkpoint's weights into a pipeline; what depends on the scene alone stays."""
    parts = {
        "_model.field.": published.field,
        "_model.semantic.": published.heads,
        "_model.autoencoder.": {} if autoencoder is None else autoencoder.state_dict(),
    }
    weights = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    own = pipeline.state_dict()
    require_shapes(
        published.path,
        "checkpoint that fits this run",
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(value.shape) for name, value in own.items() if name.startswith(tuple(parts))},
    )
    pipeline.load_pipeline({**own, **weights}, step)


@torch.no_grad()
def _rendered_features(pipeline: DivFFPipeline) -> dict[str, Tensor]:
    """Features of a few small training views, (n, dimension) by kind."""
    cameras = pipeline.datamanager.train_dataset.cameras
    views = []
    for i in evenly_spaced(len(cameras), _VIEWS).tolist():
        camera = copy.deepcopy(cameras[i : i + 1])
        area = int(camera.width) * int(camera.height)
        camera.rescale_output_resolution(min(1.0, math.sqrt(_VIEW_PIXELS / area)))
        views.append(pipeline.model.render(camera, outputs=("features",)).features)
    return {kind: torch.cat([view[kind].flatten(0, 1) for view in views]) for kind in views[0]}
