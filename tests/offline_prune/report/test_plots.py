"""Pictures: the right ones, readable files, the same bytes again."""

from __future__ import annotations

import math
import struct
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from support.run_results import layer, results_of, run

from offline_prune.errors import MissingDependencyError
from offline_prune.report.plots import write_plots
from offline_prune.report.summary import share_removed

matplotlib = pytest.importorskip("matplotlib")


def names(plots):
    return [picture.name for picture in plots.pictures]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, write_plots(folder, run(18, uneven=True))


def test_everything_that_has_something_to_show(drawn):
    folder, plots = drawn
    expected = ["blocks", "layers", "errors", "allocations", "profiles", "tasks"]
    assert names(plots) == expected
    files = {path.name for path in (folder / "figures").iterdir()}
    assert files == {f"{n}.{kind}" for n in expected for kind in ("png", "svg")}
    assert {path.name for path in plots.files} == files


def test_files_are_pictures(drawn):
    for path in drawn[1].files:
        if path.suffix == ".png":
            content = path.read_bytes()
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            width, height = struct.unpack(">II", content[16:24])
            assert width == 1200
            assert 150 < height < 1200
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_same_bytes_whatever_the_users_settings_which_stay(drawn, tmp_path):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        again = write_plots(tmp_path, run(18, uneven=True))
        assert matplotlib.rcParams["font.size"] == 30
    assert dict(matplotlib.rcParams) == before
    for first, second in zip(drawn[1].files, again.files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_nothing_to_show_is_not_drawn(tmp_path):
    layers = [layer(f"model.layers.{i}.mlp.up_proj", i, 512) for i in range(3)]
    plots = write_plots(tmp_path, results_of(layers))
    assert names(plots) == []
    assert not (tmp_path / "figures").exists()


def test_equal_layers_in_a_block_need_no_map(tmp_path):
    layers = [
        layer(f"model.layers.{i}.mlp.{kind}_proj", i, 500 + 20 * i)
        for i in range(2)
        for kind in ("up", "down")
    ]
    assert names(write_plots(tmp_path, results_of(layers))) == ["blocks"]


def test_numbers_that_are_none_leave_a_gap(tmp_path):
    layers = [
        layer("model.layers.0.mlp.up_proj", 0, 512, relative_error=math.nan),
        layer("model.layers.1.mlp.up_proj", 1, 512, relative_error=0.5),
    ]
    results = results_of(layers, profiles={"amplification": [math.inf, 2.0]})
    assert names(write_plots(tmp_path, results)) == ["errors", "profiles"]


def test_map_holds_the_shares():
    from offline_prune.report.heat_map import heat_map

    layers = [
        layer("model.layers.0.mlp.up_proj", 0, 256),
        layer("model.layers.1.mlp.experts.0.up_proj", 1, 1024),
        layer("model.layers.1.mlp.experts.1.up_proj", 1, 0),
    ]
    figure = heat_map(layers, share_removed, title="t", label="l", percent=True)
    axes, bar = figure.axes
    grid = axes.collections[0].get_array()
    assert grid.mask.tolist() == [[False, True], [True, False]]
    assert (grid[0, 0], grid[1, 1]) == (0.25, 0.5)
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "up_proj",
        "experts.up_proj",
    ]
    assert bar.get_ylabel() == "l"


def test_used_allocator_is_named():
    from offline_prune.report.curves import allocation_curves

    figure = allocation_curves(
        {"owl": [0.4, 0.6], "dlp": [0.5, 0.5]}, used="owl", target=0.5
    )
    legend = figure.axes[0].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["owl (used)", "dlp", "target 50%"]


def test_corrected_allocation_is_the_one_that_was_used():
    from offline_prune.report.plots import _used

    layers = [layer("model.layers.0.mlp.up_proj", 0, 1)]
    config = {"allocator": "owl", "correction": "absorption"}
    curves = {"owl": [0.5], "owl+absorption": [0.5]}
    results = results_of(layers, config=config, allocations=curves)
    assert _used(results) == "owl+absorption"
    config = {"allocator": "owl", "correction": None}
    assert _used(results.model_copy(update={"config": config})) == "owl"


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"vllm-sparse\[report\]"):
        write_plots(tmp_path, run(2))
