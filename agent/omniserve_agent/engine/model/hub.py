"""Models of a Hugging Face hub (HF_ENDPOINT; HF_TOKEN where one asks for it): what there is, and
fetching it file by file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.locate import MODEL_FILES, repository_of
from omniserve_agent.engine.model.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

ANSWER_S = 20.0


@dataclass(frozen=True)
class HubModel:
    """One commit of a repository, and the files that a loader reads, with their bytes."""

    uri: str
    repository: str
    commit: str
    files: tuple[tuple[str, int], ...]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(size_bytes for _, size_bytes in self.files)

    @property
    def label(self) -> str:
        """The name of its directory."""
        return f"{directory_label(self.repository)}-{self.commit[:12]}"


def directory_label(repository: str) -> str:
    """The repository in the name of a directory."""
    return repository.replace("/", "--")


def find(uri: str) -> HubModel:
    """The model as the hub describes it; PrepareError where it does not, or there is no hub."""
    repository, revision = repository_of(uri)
    info = _described(uri, repository, revision)
    files = tuple(
        (file.rfilename, file.size or 0)
        for file in info.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in MODEL_FILES)
    )
    if not any(name.endswith(".safetensors") for name, _ in files):
        raise PrepareError(f"model uri {uri!r}: {repository} has no safetensors; choose another")
    return HubModel(uri, repository, str(info.sha), files)


def _described(uri: str, repository: str, revision: str | None) -> ModelInfo:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return HfApi().model_info(
            repository, revision=revision, timeout=ANSWER_S, files_metadata=True
        )
    except (HfHubHTTPError, HFValidationError) as error:
        raise PrepareError(f"model uri {uri!r}: the hub refuses: {_first_line(error)}") from error
    except Exception as error:  # offline mode, names, sockets: each library's own kinds
        raise PrepareError(
            f"model uri {uri!r}: no model hub can be reached ({_first_line(error)}); give the "
            "agents a way to one (HF_ENDPOINT), or use pvc://, file:// or python://"
        ) from error


def fetch(model: HubModel, directory: Path, report: Progress) -> None:
    """Every file into `directory`; PrepareError with the one that could not be had."""
    from huggingface_hub import hf_hub_download

    total_bytes, fetched_bytes = max(1, model.size_bytes), 0
    for name, size_bytes in model.files:
        report(f"fetching {name}", fetched_bytes / total_bytes)
        try:
            hf_hub_download(model.repository, name, revision=model.commit, local_dir=directory)
        except Exception as error:  # as above
            raise PrepareError(
                f"model uri {model.uri!r}: {name} cannot be fetched: {_first_line(error)}"
            ) from error
        fetched_bytes += size_bytes
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the library's own notes


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
