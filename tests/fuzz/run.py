"""Mutated media through `analyze_many`: every result is typed, nothing hangs or crashes, and memory stays as it was.

    python tests/fuzz/run.py --count 5000 --seed 1 --keep work/fuzz

Inputs are analyzed in a process of their own. Where one ends or stalls it, the next process goes on after that one.
What fails is kept, and is made again with ``--first NUMBER --count 1``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from random import Random
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from mutations import mutated, seeds

HANG_S: Final = 30.0
"""An input that takes longer has hung. Usual ones take some hundredths of a second."""
MAX_RSS_MIB: Final = 2048
"""Two inputs at once, of whatever size their headers claim."""
MAX_GROWTH_MIB: Final = 256
"""From the 100th input of a process on; less is what the allocator keeps for later."""
_START_S: Final = 300.0
_READY: Final = "ready\n"


def main() -> int:
    """Run the cases and print what became of them; returns the exit code."""
    arguments = _arguments()
    if arguments.worker:
        _work(arguments.seed, arguments.first, arguments.count, Path(arguments.folder))
        return 0
    found: Counter[str] = Counter()
    failed: list[dict[str, Any]] = []
    peak_mib = growth_mib = 0
    done, started, shown = 0, time.monotonic(), 0.0
    with TemporaryDirectory() as folder:
        while done < arguments.count:
            base_mib = 0
            for line in _results(arguments.seed, arguments.first + done, arguments.count - done, folder):
                done += 1
                found[line["result"]] += 1
                if line["result"] in ("untyped", "hang", "crash"):
                    failed.append(line)
                    print(json.dumps(line), flush=True)
                    _keep(arguments.keep, arguments.seed, line["number"])
                elif line["result"] not in ("MediaOpenError", "MediaNotFoundError") and "message" in line:
                    print(json.dumps(line), flush=True)  # typed, but something that was not foreseen
                peak_mib = max(peak_mib, line.get("peak_mib", 0))
                base_mib = line.get("rss_mib", 0) if line.get("nth", 0) <= 100 else base_mib
                growth_mib = max(growth_mib, line.get("rss_mib", 0) - base_mib)
                if time.monotonic() - shown > 10 or done == arguments.count:
                    shown = time.monotonic()
                    print(f"{done} of {arguments.count}, {shown - started:.0f} s: {dict(found)}", flush=True)
    print(f"seed {arguments.seed}: memory at most {peak_mib} MiB, {growth_mib} MiB more than after 100 inputs")
    too_much = peak_mib > MAX_RSS_MIB or growth_mib > MAX_GROWTH_MIB
    print(f"{len(failed)} failures" + (", and too much memory" if too_much else ""))
    return 1 if failed or too_much else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of inputs")
    parser.add_argument("--seed", type=int, default=1, help="decides all of them")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _keep(folder: Path | None, seed: int, number: int) -> None:
    if folder is not None:
        name, content = mutated(seeds(), seed, number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}-{number}-{name.split()[0]}").write_bytes(content)


def _results(seed: int, first: int, count: int, folder: str) -> Iterator[dict[str, Any]]:
    """Yield one result for each input from `first` on, until all are done or one has ended the process."""
    command = [sys.executable, "-X", "faulthandler", __file__, "--worker", "--folder", folder]
    command += ["--seed", str(seed), "--first", str(first), "--count", str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    errors: list[str] = []
    threads = [Thread(target=read), Thread(target=lambda: errors.extend(process.stderr or ()))]
    for thread in threads:
        thread.start()
    number, expected = first, first + count
    limit_s = _START_S  # until it says that it is ready
    try:
        while number < expected:
            try:
                line = lines.get(timeout=limit_s)
            except Empty:
                process.send_signal(signal.SIGABRT)  # faulthandler shows where it is
                process.wait()
                threads[1].join()
                yield {"number": number, "result": "hang", "where": "".join(errors)[-6000:]}
                return
            if line is None:
                threads[1].join()
                code = process.wait()
                yield {"number": number, "result": "crash", "code": code, "where": "".join(errors)[-6000:]}
                return
            limit_s = HANG_S
            if line != _READY:
                yield json.loads(line)
                number += 1
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join()


def _work(seed: int, first: int, count: int, folder: Path) -> None:
    """Analyze the cases, and print one line for each."""
    import av
    from fixed_detector import LEFT, FixedDetector

    from deepfake_client import DeepfakeClient
    from deepfake_client.transport.testing import FakeTransport

    av.logging.set_level(None)
    files = seeds()
    print(_READY, end="", flush=True)
    with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT), detect_threads=1) as client:
        for nth, number in enumerate(range(first, first + count)):
            line = {"number": number, "nth": nth, **_case(client, files, seed, number, folder), **_memory()}
            print(json.dumps(line), flush=True)


def _case(client: Any, files: dict[str, bytes], seed: int, number: int, folder: Path) -> dict[str, Any]:
    from deepfake_client import AnalyzeOptions, DeepfakeError, Outcome, Sampling

    name, content = mutated(files, seed, number)
    random = Random(f"how {seed}:{number}")
    path = folder / name.split()[0]
    path.write_bytes(content)
    source = random.choice((str(path), content, io.BytesIO(content)))
    sampling = random.choice(
        (
            Sampling(4),
            Sampling(32),
            Sampling(4, mode="fast"),
            Sampling(None, fps=5),
            Sampling(None, at_seconds=(0.1, 0.5)),
        )
    )
    options = AnalyzeOptions(sampling=sampling, until_sure=random.random() < 0.2)
    try:
        (outcome,) = client.analyze_many([source], options=options)
        json.dumps(outcome.to_dict(), allow_nan=False)
        assert Outcome.from_dict(outcome.to_dict()).to_dict() == outcome.to_dict()
        if outcome.error is not None:
            assert isinstance(outcome.error, DeepfakeError)
            assert "\n" not in str(outcome.error)
            return {"result": type(outcome.error).__name__, "name": name, "message": str(outcome.error)}
        return {"result": outcome.verdict.label.value}
    except Exception:
        return {"result": "untyped", "name": name, "options": repr(options), "where": traceback.format_exc()}


def _memory() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(status[field].split()[0]) >> 10 for key, field in (("rss_mib", "VmRSS"), ("peak_mib", "VmHWM"))}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
