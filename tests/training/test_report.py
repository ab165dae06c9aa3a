"""The report as text and as shown by Chromium, for runs written here."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from audio_mamba.training import report
from audio_mamba.training.records import StepTable, write_log

COLOURS = {"light": ["#0067b0", "#c24f00", "#007a58"], "dark": ["#5cb6f2", "#ff9248", "#35cda0"]}
PICTURE_COLOUR = (1.0, 0.0, 1.0)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_run(folder, epochs=3, steps=40, loss=1.0, picture=True, **config):
    """A work folder of a run in its second to last epoch, as written by training.monitor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"name": "configs.ssam_tiny_200_16x4", "num_epochs": epochs + 1, "opt": {"learning_rate": 1e-4}, **config}
        )
    )
    write_log(
        folder / "log.txt",
        [
            {
                "epoch": epoch,
                "train_loss": loss / (epoch + 1),
                "val_loss": loss / (epoch + 2),
                "train_lr": 1e-4,
                "seconds": 1800.0,
            }
            for epoch in range(epochs)
        ],
    )
    table = StepTable(folder / "steps.csv", last_step=0)
    for line in range(1, steps + 1):
        table.add(
            {
                "step": 10 * line,
                "epoch": line * (epochs + 1) // (steps + 1),
                "seconds": 180.0,
                "train_loss": loss * 10 / (9 + line),
                "lr": loss * 1e-6 * line,
                "data_wait": 0.25,
                "grad_norm": loss * 2 ** (line % 3),
                "samples_per_second": 120.0 + line % 2,
            }
        )
    table.close()
    if picture:
        matplotlib.image.imsave(folder / "reconstructions.png", np.broadcast_to(PICTURE_COLOUR, (60, 100, 3)))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / name, loss=loss, batch_size=size)
        for name, loss, size in (("first", 1.0, 8), ("second", 1.5, 8), ("third", 2.0, 16))
    ]


class Page(HTMLParser):
    """The text of the table cells by row, and all tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] = " ".join((self.rows[-1][-1] + " " + data).split())


def page(folders, tmp_path):
    report.write_report(folders, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text())


def test_the_table_has_the_numbers_of_each_run(runs, tmp_path):
    rows = page(runs, tmp_path).rows
    assert rows[0] == [
        "Run",
        "Config",
        "Epochs",
        "Training loss",
        "Validation loss",
        "Samples/s",
        "Data wait",
        "Hours",
        "Last update, UTC",
    ]
    # Three logged epochs of half an hour, and 10 lines of 3 minutes in the fourth.
    assert rows[1][:-1] == ["first", "ssam_tiny_200_16x4", "3 of 4", "0.3333", "0.2500", "120", "25%", "2.00"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", rows[1][-1])
    assert [row[0] for row in rows[1:4]] == ["first", "second", "third"]


def test_the_best_loss_is_shown_if_it_is_not_the_last(tmp_path):
    folder = write_run(tmp_path / "run")
    write_log(folder / "log.txt", [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate([3.0, 1.0, 2.0])])
    assert page([folder], tmp_path).rows[1][3] == "2.0000 best 1.0000"
    write_log(folder / "log.txt", [{"epoch": 0, "train_loss": 1.0}, {"epoch": 1, "train_loss": float("nan")}])
    assert page([folder], tmp_path).rows[1][3] == "– best 1.0000"


def test_only_differing_config_keys_are_listed(runs, tmp_path):
    rows = page(runs, tmp_path).rows
    assert rows[4:] == [["Key", "first", "second", "third"], ["batch_size", "8", "8", "16"]]
    assert report.differing_keys([{"a": {"b": 1, "c": 2}}, {"a": {"b": 1.5}}, {}]) == {
        "a.b": ["1", "1.5", ""],
        "a.c": ["2", "", ""],
    }


def test_charts_overlay_all_runs_and_have_descriptions(runs, tmp_path):
    charts = [
        attributes["aria-label"]
        for tag, attributes in page(runs, tmp_path).tags
        if tag == "svg" and attributes.get("role") == "img"
    ]
    assert [chart.split(".")[0] for chart in charts] == [
        "Loss by epoch",
        "Training loss by step",
        "Learning rate by step",
        "Gradient norm by step",
    ]
    assert "first training goes from 1 to 0.3333; first validation goes from 0.5 to 0.25; second" in charts[0]
    assert "third goes from 2 to 0.4082." in charts[1]


def test_numbers_of_objectives_have_charts_of_their_own(tmp_path):
    plain, own = write_run(tmp_path / "plain"), write_run(tmp_path / "own")
    table = StepTable(own / "steps.csv", last_step=0)
    for step, value in ((10, 4.0), (20, 1.0)):
        table.add({"step": step, "epoch": 0, "target_std": value}, more_columns=["target_std"])
    table.close()
    charts = [
        attributes["aria-label"]
        for tag, attributes in page([plain, own], tmp_path).tags
        if tag == "svg" and attributes.get("role") == "img"
    ]
    assert charts[2] == "Target std by step. own goes from 4 to 1." and len(charts) == 5


def test_pictures_are_embedded_and_have_alt_texts(runs, tmp_path):
    (runs[1] / "reconstructions.png").unlink()
    pictures = [attributes for tag, attributes in page(runs, tmp_path).tags if tag == "img"]
    assert len(pictures) == 2
    assert (
        base64.b64decode(pictures[0]["src"].removeprefix("data:image/png;base64,"))
        == (runs[0] / "reconstructions.png").read_bytes()
    )
    assert "first" in pictures[0]["alt"] and "third" in pictures[1]["alt"]


def test_the_page_loads_nothing(runs, tmp_path):
    seen = page(runs, tmp_path)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in seen.tags}
    loaded = [value for _, attributes in seen.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    text = (tmp_path / "report.html").read_text()
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    assert "default-src 'none'" in text


def test_names_and_values_are_escaped(tmp_path):
    evil = '<img src=x onerror="alert(1)">'
    folders = [write_run(tmp_path / "<b>&\"'", name=evil, **{evil: evil}), write_run(tmp_path / "plain")]
    seen = page(folders, tmp_path)
    assert not [attributes for tag, attributes in seen.tags if "onerror" in attributes or tag == "b"]
    assert seen.rows[1][:2] == ["<b>&\"'", evil]
    assert [evil, json.dumps(evil), "–"] in seen.rows


def test_new_runs_and_runs_with_missing_files_are_shown_with_notes(runs, tmp_path):
    (runs[0] / "log.txt").unlink()
    (runs[1] / "steps.csv").write_text("step,epoch,train_loss\n10,0,0.5\n20,0,0.")
    (runs[1] / "config.json").write_text('{"num_ep')
    (runs[2] / "log.txt").write_text("nonsense\n")
    (runs[2] / "reconstructions.png").write_bytes(b"")
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.json").write_text("{}")
    rows = page([*runs, new], tmp_path).rows
    assert rows[1][0] == "first no log.txt yet" and rows[1][2] == "0 of 4"
    assert rows[2][0].startswith("second cannot read config.json: ") and rows[2][2] == "3"
    assert "third cannot read log.txt: " in rows[3][0] and "log.txt, line 1: " in rows[3][0]
    assert rows[3][0].endswith("cannot read reconstructions.png: not a PNG file")
    assert rows[4][0] == "new no log.txt yet no steps.csv yet"


def test_no_picture_is_missed(tmp_path):
    """Fine-tuning draws none, nor do objectives that predict no patches."""
    assert page([write_run(tmp_path / "run", picture=False)], tmp_path).rows[1][0] == "run"


@pytest.mark.parametrize(
    "metric, shown",
    [(None, ["accuracy", "mAP"]), ("mAP", ["accuracy", "mAP"]), ("d_prime", ["accuracy", "mAP", "d_prime"])],
)
def test_the_metric_that_chose_the_epoch_is_shown(tmp_path, metric, shown):
    folder = write_run(tmp_path / "run", head={"loss": "single"}, metric=metric)
    values = {"accuracy": 0.25, "balanced_accuracy": 0.125, "mAP": 0.5, "AUC": 0.75, "d_prime": 1.5}
    log = [{"epoch": epoch, **{f"val_{name}": value for name, value in values.items()}} for epoch in (0, 1)]
    write_log(folder / "log.txt", log)
    charts = [attributes.get("aria-label", "") for _, attributes in page([folder], tmp_path).tags]
    chart = next(chart for chart in charts if chart.startswith("Validation metrics by epoch. "))
    assert re.findall(r"run (\w+) goes from ([\d.]+) to", chart) == [(name, f"{values[name]:g}") for name in shown]


def test_odd_names_and_files_are_shown_as_well_as_they_can_be(tmp_path):
    folder = tmp_path / os.fsdecode(b"run\xff")
    folder.mkdir()
    (folder / "config.json").write_text('{"a":' * 100_000)
    (folder / "log.txt").write_text('{"train_loss": 1' + "0" * 400 + ', "train_lr": 0.1, "epoch": 0}\n')
    rows = page([folder], tmp_path).rows
    assert rows[1][0].startswith("run? ") and "cannot read config.json: " in rows[1][0]
    assert rows[1][2] == "1"


def test_a_published_log_alone_is_enough(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text('{"train_loss": 0.5, "train_lr": 0.1, "epoch": 0}\n')
    seen = page([tmp_path / "run"], tmp_path)
    assert seen.rows[1][2:4] == ["1", "0.5000"]
    charts = [attributes["aria-label"] for tag, attributes in seen.tags if attributes.get("role") == "img"]
    assert [chart.split(".")[0] for chart in charts] == ["Loss by epoch", "Learning rate by epoch"]


def test_runs_with_the_same_name_are_shown_by_path(tmp_path):
    folders = [write_run(tmp_path / parent / "run") for parent in "ab"]
    assert [row[0] for row in page(folders, tmp_path).rows[1:3]] == [str(folder) for folder in folders]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.write_text("x"), "is not a folder"),
    ],
)
def test_what_is_not_a_folder_is_reported_and_nothing_is_written(runs, tmp_path, make, message):
    make(tmp_path / "other")
    with pytest.raises(SystemExit, match=f"^report: {re.escape(str(tmp_path / 'other'))} {message}"):
        report.main([str(runs[0]), str(tmp_path / "other"), "--out", str(tmp_path / "report.html")])
    assert not list(tmp_path.glob("report.html*"))


def test_folders_of_runs_are_expanded_and_what_is_beside_them_is_left_out(tmp_path, capsys, caplog):
    """The folder of a sweep, by its name and as RUNS/*."""
    for name in ("b", "a", "c"):
        write_run(tmp_path / "sweep" / name)
    for name in ("sweep.csv", "sweep.md"):
        (tmp_path / "sweep" / name).write_text("x")
    (tmp_path / "sweep" / "empty" / "checkpoints").mkdir(parents=True)
    out = tmp_path / "report.html"
    single = write_run(tmp_path / "single")
    for given, warned in (([tmp_path / "sweep"], False), (sorted((tmp_path / "sweep").iterdir()), True)):
        report.main([*map(str, given), str(single), "--out", str(out)])
        assert [row[0] for row in Page(out.read_text()).rows[1:5]] == ["a", "b", "c", "single"]
        assert capsys.readouterr().out == f"{out}: 4 run(s)\n"
        assert [record.getMessage() for record in caplog.records] == (
            [f"{tmp_path}/sweep/empty is left out: it has no config.json, log.txt or steps.csv"] if warned else []
        )


@pytest.mark.parametrize("names", [["empty"], ["sweep.csv", "empty"], ["empty", "missing"], ["sweep.csv"]])
def test_where_no_run_is_left_nothing_is_written(tmp_path, names):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep.csv").write_text("x")
    with pytest.raises(SystemExit, match=f"^report: {re.escape(str(tmp_path))}/{names[-1]} is not a "):
        report.main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "report.html")])
    assert not list(tmp_path.glob("report.html*"))


def test_a_folder_is_no_page(runs, tmp_path):
    with pytest.raises(SystemExit, match="is a folder; name a file for the page"):
        report.main([str(runs[0]), "--out", str(tmp_path)])


def test_a_failure_leaves_the_old_page(runs, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(report, "render", lambda runs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(runs, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old" and not list(tmp_path.glob("report.html.*"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to look at the page with")
class TestInABrowser:
    def browse(self, tmp_path, address, *options):
        """Chromium without network: every connection goes to a closed local port."""
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--proxy-server=127.0.0.1:9",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={tmp_path / 'profile'}",
                *options,
                address.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 520)])
    def test_all_curves_and_pictures_are_visible(self, runs, tmp_path, scheme, width):
        for run in runs:  # their frames have the colours of the curves
            (run / "reconstructions.png").unlink()
        report.write_report([*runs, write_run(tmp_path / "pictured", loss=2.5)], tmp_path / "report.html")
        self.browse(
            tmp_path,
            tmp_path / "report.html",
            f"--screenshot={tmp_path / 'shot.png'}",
            f"--window-size={width},4000",
            *(["--force-dark-mode"] if scheme == "dark" else []),
        )
        pixels = matplotlib.image.imread(tmp_path / "shot.png")[..., :3]
        assert pixels.shape[1] == width

        def count(colour):
            return (np.abs(pixels - matplotlib.colors.to_rgb(colour)) < 0.01).all(-1).sum()

        for colour in COLOURS[scheme]:
            assert count(colour) > 2000, colour  # ticks, legends and dots alone are some hundreds
        for other in COLOURS["dark" if scheme == "light" else "light"]:
            assert count(other) == 0
        assert count(PICTURE_COLOUR) > 100_000
        assert (pixels[20, 5].mean() > 0.9) == (scheme == "light")

    def test_a_phone_shows_it_without_sideways_scrolling_and_ticks_hide_runs(self, runs, tmp_path):
        """An outer page measures the report in a frame as wide as a phone."""
        long = write_run(tmp_path / ("long_" * 30), batch_size=[1] * 99)
        report.write_report([*runs, long], tmp_path / "report.html")
        measure = """
            const seen = document.querySelector("iframe").contentDocument, told = {};
            told.width = seen.documentElement.scrollWidth;
            told.plots = [...seen.querySelectorAll(".plot svg")].map(plot => plot.getBoundingClientRect().width);
            told.pictures = [...seen.images].map(image => image.naturalWidth);
            const curve = (run) => seen.querySelector(".plot .run-" + run);
            const shown = () => [curve(0), curve(1)].map(element => getComputedStyle(element).display);
            told.before = shown();
            seen.querySelector("#show-0").click();
            told.after = shown();
            document.body.innerHTML = "<pre>" + JSON.stringify(told) + "</pre>";
        """
        inner, onload = html.escape((tmp_path / "report.html").read_text()), html.escape(measure)
        (tmp_path / "phone.html").write_text(
            f'<iframe srcdoc="{inner}" onload="{onload}" style="width: 390px; height: 800px; border: 0"></iframe>'
        )
        dom = self.browse(tmp_path, tmp_path / "phone.html", "--dump-dom")
        told = json.loads(html.unescape(re.search(r"<pre>(.*)</pre>", dom)[1]))
        assert told["width"] == 390
        assert len(told["plots"]) == 4 and min(told["plots"]) > 280
        assert told["pictures"] == [100] * 4
        assert told["before"] == ["inline", "inline"] and told["after"] == ["none", "inline"]
