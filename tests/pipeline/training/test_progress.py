import io
import math

import pytest

from pipeline.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_a_line_says_step_loss_rate_norm_speed_and_time_left():
    out = io.StringIO()
    with Progress(1000, 64, file=out) as progress:
        progress.update(100, loss=0.69314, learning_rate=1e-3, gradient_norm=2.5, examples_per_second=640.0)
    assert out.getvalue() == "step 100/1000  loss 0.6931  rate 1.00e-03  |g| 2.5  640/s  1:30 left\n"


def test_lines_come_every_few_seconds_not_every_update():
    out, clock = io.StringIO(), Clock()
    with Progress(100, 1, file=out, clock=clock) as progress:
        for step in range(100):
            clock.seconds = step * 0.2
            progress.update(step, 1.0, 1.0, 1.0, 1.0)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["0/100", "25/100", "50/100", "75/100"]


def test_each_epoch_leaves_a_line_with_its_metrics_and_marks_the_best():
    out = io.StringIO()
    with Progress(100, 1, file=out) as progress:
        progress.epoch(1, 2, {"accuracy": 0.81234, "loss": 0.5}, best=True)
        progress.epoch(2, 2, {"accuracy": 0.8, "loss": 0.6}, best=False)
    assert out.getvalue().splitlines() == [
        "epoch 1/2  accuracy 0.8123  loss 0.5000  best so far",
        "epoch 2/2  accuracy 0.8000  loss 0.6000",
    ]


def test_plain_lines_are_flushed_at_once():
    class Pipe(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    out = Pipe()
    with Progress(100, 1, file=out) as progress:
        progress.update(1, 1.0, 1.0, 1.0, 1.0)
        assert out.flushed == 1


def test_a_terminal_gets_a_bar_and_keeps_the_epoch_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with Progress(100, 10, file=out) as progress:
        progress.update(40, 0.5, 1e-3, 2.0, 100.0)
        progress.epoch(1, 2, {"accuracy": 0.9}, best=True)
    text = out.getvalue()
    assert "━" in text
    assert "40/100" in text
    assert "loss 0.5  rate 1.00e-03  |g| 2  100/s  0:06 left" in text
    assert "epoch 1/2  accuracy 0.9000  best so far" in text
    assert "\x1b[?25h" in text, "the cursor must be shown again"


def test_forced_colours_do_not_draw_a_bar_into_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with Progress(100, 10, file=out) as progress:
        progress.update(40, 0.5, 1e-3, 2.0, 100.0)
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("columns", ["0", "1", "20", "no"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_no_value_and_no_width_makes_it_raise(monkeypatch, kind, value, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    with Progress(0, 1, 0, file=kind()) as progress:
        progress.update(1, value, value, value, value)
        progress.epoch(1, 1, {"[red]loss[/]": value}, best=False)


def test_an_error_inside_the_loop_passes_through_and_restores_the_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with pytest.raises(KeyError), Progress(100, 10, file=out):
        raise KeyError
    assert out.getvalue().endswith("\x1b[?25h")
