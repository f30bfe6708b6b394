"""Make a Hugging Face folder describe its own activation sparsity.

The folder gains one file, ``vllm_sparse_config.json``. Where the plugin is installed it
then needs no flag; stock transformers and stock vLLM ignore the file.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tqdm import tqdm

from nmsparse.beside import check_link
from nmsparse.config import Phase, SparsityConfig
from nmsparse.pattern import Pattern
from nmsparse.sidecar import write_sidecar
from offline_prune import __version__
from offline_prune.errors import InputError
from offline_prune.staging import staged_folder


def annotate(
    model_dir: str | Path,
    *,
    pattern: str | Pattern,
    phase: Phase | str = Phase.DECODE,
    output: str | Path | None = None,
) -> Path:
    """Write the sidecar into a model folder, or into a copy of it.

    Args:
        model_dir: a Hugging Face model folder.
        pattern: what every decoder linear keeps of its input, such as ``8:16``.
        phase: which tokens are sparse: ``decode``, ``prefill`` or ``both``.
        output: a new folder for an annotated copy, in which every other file is
            byte-identical. None writes into ``model_dir`` itself and replaces the
            sidecar it may have.

    Returns:
        The annotated folder.

    Raises:
        InputError: if ``model_dir`` is no model folder or ``output`` cannot be used.
        nmsparse.config.ConfigError: if the pattern or the phase is invalid.
    """
    # Validate before anything is copied.
    config = SparsityConfig.uniform(pattern, phase=phase).model_copy(
        update={"provenance": {"method": "annotate", "vllm_sparse": __version__}}
    )
    source = Path(model_dir)
    _check_model_folder(source)
    if output is None:
        write_sidecar(source, config)
        return source
    target = Path(output)
    check_output_folder(source, target)
    with staged_folder(target) as staging:
        copy_model(source, staging, label=f"Copying to {target}")
        write_sidecar(staging, config)
    return target


def _check_model_folder(folder: Path) -> None:
    """Refuse what is not a Hugging Face model folder."""
    if not folder.is_dir():
        raise InputError(
            f"Model folder {folder} does not exist. Expected a local Hugging Face "
            "folder. A model of the Hub must be downloaded first: hf download ORG/NAME "
            "--local-dir DIR"
        )
    if not (folder / "config.json").is_file():
        raise InputError(
            f"Model folder {folder} has no config.json. Expected a Hugging Face model "
            "folder (config.json, safetensors, tokenizer): check the path."
        )


def check_output_folder(source: Path, target: Path) -> None:
    """Refuse an output that would overwrite something or copy a folder into itself.

    Raises:
        InputError: saying what is there.
    """
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"Output folder {target} is the model folder {source} or lies in it. "
            "Expected a folder elsewhere; leave the output out to annotate in place."
        )
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise InputError(
            f"Output folder {target} exists and is not empty. Expected a new folder: "
            "choose another, or remove it."
        )


def copy_model(source: Path, target: Path, *, label: str) -> None:
    """Copy all files with a progress bar.

    Links are followed: a Hub cache folder holds links into the cache. Hard links would
    be quicker than copies, but a later write through one name would change both.

    Raises:
        InputError: if a link leads elsewhere, or to a folder: a model of others must
            not bring private files into the copy, or itself again and again.
    """
    paths = list(source.rglob("*"))
    try:
        for path in paths:
            check_link(source, path)
            if path.is_symlink() and path.is_dir():
                raise ValueError(
                    f"{path} is a link to a folder. Expected files, links to files and "
                    "folders: replace the link by what it points to."
                )
    except ValueError as error:
        raise InputError(f"Model folder {source}: {error}") from None
    files = [path for path in paths if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    # disable=None: no bar where nobody watches (not a terminal).
    with tqdm(
        total=total, desc=label, unit="B", unit_scale=True, disable=None
    ) as progress:

        def copy_one(origin: str, destination: str) -> str:
            copied = shutil.copy2(origin, destination)
            progress.update(Path(origin).stat().st_size)
            return str(copied)

        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy_one)
    # The copy has the permissions of the source, which may be read-only.
    target.chmod(target.stat().st_mode | 0o700)
