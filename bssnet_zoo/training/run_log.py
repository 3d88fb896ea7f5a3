"""What a run says while it runs: ``log.csv``, ``val.csv``, TensorBoard, and progress on the terminal."""
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..files import atomic_path

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter as Board

__all__ = ["CsvLog", "RunLog"]

LINE_EVERY = 50
SCORES = ("miou", "pixel_accuracy", "boundary_f1")


@contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """A full disk is told with the name of what was written, which the system's error lacks."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from error


class CsvLog:
    """A CSV file whose first column is the iteration, written line by line.

    Args:
        path: The file.
        columns: Names of the columns, the first of them ``iteration``.
        keep: Lines of an earlier run beyond this iteration are cut off; with 0, all of them.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep: int = 0):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.exists() else []
        # a run that was killed may leave half a line
        lines = [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) <= keep]
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)
            file.writelines(lines)
        self.file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, iteration: int, values: Sequence[float]) -> None:
        with named(self.path):
            self.file.write(",".join([str(iteration), *(f"{value:.6g}" for value in values)]) + "\n")

    def close(self) -> None:
        with named(self.path):
            self.file.close()


def open_board(folder: Path, start: int) -> "Board | None":
    """TensorBoard's writer, if it is installed, to go on after an iteration."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


class RunLog:
    """Log files, TensorBoard if it is installed, and a progress bar on a terminal, plain lines elsewhere.

    Args:
        folder: The run folder.
        loss_names: Columns of the losses in ``log.csv``.
        class_names: Columns of the IoU in ``val.csv``.
        start: Iterations done before; the files are cut back to it.
        total: Iterations in the end.
        batch_size: Images in an iteration, for images/s.
        enabled: False for a log that does nothing: that of all processes but one.
        unvalidated: The validation of the last of ``start`` is still to come.
    """

    def __init__(
            self,
            folder: Path,
            loss_names: Sequence[str],
            class_names: Sequence[str],
            start: int,
            total: int,
            batch_size: int,
            enabled: bool = True,
            unvalidated: bool = False,
    ):
        self.enabled = enabled
        if not enabled:
            return
        self.columns = ["epoch", "lr", *loss_names, "images_per_second", "eta_seconds"]
        self.log = CsvLog(folder / "log.csv", ["iteration", *self.columns], keep=start)
        self.val_columns = [*SCORES, *(
            f"IoU of {name}" if name in ("iteration", *SCORES) else " ".join(name.split()) for name in class_names)]
        self.val = CsvLog(folder / "val.csv", ["iteration", *self.val_columns], keep=start - unvalidated)
        self.folder = folder
        self.board = open_board(folder, start)
        self.total = total
        self.batch_size = batch_size
        self.miou: float | None = None
        self.seconds: float | None = None
        self.bar = tqdm(total=total, initial=start, unit="it", dynamic_ncols=True, disable=not sys.stderr.isatty())
        self.resume_clock()

    def resume_clock(self) -> None:
        """Time from the last iteration to here, spent on validation or a checkpoint, doesn't count."""
        self.last_time = time.perf_counter()

    def iteration(self, iteration: int, epoch: float, lr: float, losses: Sequence[float]) -> None:
        """Logs an iteration; ``losses`` in the order of ``loss_names``, the total first."""
        if not self.enabled:
            return
        now = time.perf_counter()
        seconds = now - self.last_time
        self.last_time = now
        self.seconds = seconds if self.seconds is None else 0.9 * self.seconds + 0.1 * seconds
        images_per_second = self.batch_size / self.seconds
        eta = (self.total - iteration) * self.seconds
        values = [epoch, lr, *losses, images_per_second, eta]
        self.log.write(iteration, values)
        self._to_board("train", self.columns, values, iteration)
        miou: dict[str, str] = {} if self.miou is None else {"mIoU": f"{100 * self.miou:.2f}"}
        self.bar.set_postfix({"loss": f"{losses[0]:.3f}", **miou}, refresh=False)
        self.bar.update()
        if self.bar.disable and (iteration % LINE_EVERY == 0 or iteration == self.total):
            words = [f"iteration {iteration}/{self.total}", f"epoch {epoch:.2f}", f"loss {losses[0]:.3f}",
                     *(f"{name} {value}" for name, value in miou.items()), f"lr {lr:.2e}",
                     f"{images_per_second:.1f} images/s", f"ETA {timedelta(seconds=round(eta))}"]
            self.say("  ".join(words))

    def validation(self, iteration: int, values: Sequence[float]) -> None:
        """Logs mIoU, pixel accuracy, boundary F1 and the IoU of each class, as fractions."""
        if not self.enabled:
            return
        self.miou = values[0]
        self.val.write(iteration, values)
        self._to_board("val", self.val_columns, values, iteration)

    def say(self, text: str) -> None:
        """Prints without tearing the progress bar."""
        if self.enabled:
            print(text, flush=True) if self.bar.disable else self.bar.write(text)

    def _to_board(self, group: str, names: Sequence[str], values: Sequence[float], iteration: int) -> None:
        if self.board is not None:
            with named(self.folder):
                for name, value in zip(names, values, strict=True):
                    self.board.add_scalar(f"{group}/{name}", value, iteration)

    def close(self) -> None:
        if not self.enabled:
            return
        self.bar.close()
        self.log.close()
        self.val.close()
        if self.board is not None:
            with named(self.folder):
                self.board.close()
