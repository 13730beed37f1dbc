"""Time to quality: the best validation Dice of each training below a folder, against the core-minutes that it took.

python -m benchmarks.quality --root trainings --cores 2 --out quality.png
"""

from pathlib import Path

import fire
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def quality(root: str, cores: int = 1, out: str = "quality.png", tag: str = "val_dice") -> None:
    """Draw the trainings whose TensorBoard logs lie below a folder, and print where each ended.

    Args:
        root: folder of trainings, such as their `--output_dir`; each is named by its place there.
        cores: that each of them had.
        out: the picture.
        tag: what is drawn.
    """
    curves = {str(log.relative_to(root)): curve(log, tag) for log in sorted(Path(root).rglob("*_tensorboard"))}
    figure = Figure(figsize=(8, 5), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="core-minutes", ylabel=f"best {tag} so far")
    for name, (minutes, values) in curves.items():
        if len(values):
            axes.step(minutes * cores, np.maximum.accumulate(values), where="post", marker=".", label=name)
            print(f"{name}: {values.max():.3f} after {minutes[values.argmax()] * cores:.1f} core-minutes")
    axes.legend(fontsize=8)
    figure.savefig(out)


def curve(log: Path, tag: str, longest_break: float = 10) -> tuple[np.ndarray, np.ndarray]:
    """Minutes of work before each validation, and what it found.

    Args:
        longest_break: minutes without a word that may be work; in longer ones a training was stopped, or its machine.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    known = events.Tags()["scalars"]
    shown = events.Scalars(tag) if tag in known else []
    times = np.array(sorted(event.wall_time for name in known for event in events.Scalars(name)))
    gaps = np.diff(times, prepend=times[:1]) / 60
    worked = np.cumsum(np.where(gaps > longest_break, 0, gaps))
    places = np.searchsorted(times, [event.wall_time for event in shown])
    return worked[places], np.array([event.value for event in shown])


if __name__ == "__main__":
    fire.Fire(quality)
