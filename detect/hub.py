"""A detector published on the Hugging Face hub: its weights and a model card."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from torch import Tensor

from backbones.networks.hub import SCHEME, WEIGHTS, one_line, page_of
from backbones.networks.weights import save_weights

CARD = "README.md"

logger = logging.getLogger(__name__)


def push_weights(
    repository: str,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    license: str,
    private: bool,
) -> None:
    """Make a repository, unless it is there, and put a detector into it.

    A card that is there stays as it is, which the log says.

    Args:
        repository: `OWNER/NAME`.
        state: weights of the detector.
        metadata: of its checkpoint.
        license: identifier of the hub, such as `apache-2.0`.
        private: who is to see a new repository: its owner alone, or everybody.

    Raises:
        UserError: it cannot be pushed.
    """
    page = page_of(repository)
    with (
        tempfile.TemporaryDirectory() as folder,
        one_line(
            f"{repository}: cannot be pushed to the Hugging Face hub",
            "write OWNER/NAME, and log in by `hf auth login` or set HF_TOKEN to a token that may "
            "write there",
        ),
    ):
        save_weights(Path(folder, WEIGHTS), state, metadata)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        has_card = api.file_exists(repository, CARD)
        if not has_card:
            model_card(repository, metadata, license).save(Path(folder, CARD))
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A detector of lowres-rcnn"
        )
    if has_card:
        logger.warning("%s: its %s stays as it is: look whether it still holds", page, CARD)


def model_card(repository: str, metadata: Mapping[str, Any], license: str) -> ModelCard:
    """What a detector finds, how well, and how it is used, as far as its metadata know."""
    data = ModelCardData(
        license=license,
        library_name="lowres-rcnn",
        pipeline_tag="object-detection",
        tags=["object-detection", "lowres-rcnn"],
    )
    training = metadata.get("training") or {}
    metrics = metadata.get("metrics") or {}
    return ModelCard.from_template(
        data,
        str(Path(__file__).with_name("model_card.md.jinja")),
        name=repository.rpartition("/")[2],
        weights=SCHEME + repository,
        metadata=metadata,
        # Not its folders, which tell of somebody's machine.
        trained_on=Path((training.get("data") or {}).get("root") or "").name,
        training=training,
        scores={name: value for name, value in metrics.items() if name != "score_thresh"},
        score_thresh=metrics.get("score_thresh"),
    )
