"""Find and measure the stars in a picture of the sky, on all cores.

A plain multiprocessing program; nothing in it knows of procession.

    python star_survey.py                  on the standard package
    python -m procession star_survey.py    on procession

Detection: a pool looks through the picture in small tiles, each sent as a NumPy array, and sends back the stars in it.
Measurement: processes take the stars from a queue, each with the pixels around it, measure them, and put the answers on
a second queue; they count the stars of each brightness in one array that they all write to, under a lock.
The picture is drawn from a seed, so every run finds the same stars.
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 2048  # pixels
TILE = 32
MARGIN = 8  # what a tile shows of its neighbours, so that a star on the edge is seen whole
STARS = 12_000
SKY, NOISE, BLUR = 100.0, 3.0, 1.3
BRIGHTNESSES = 16


def draw_sky(seed, side, stars):
    random = np.random.default_rng(seed)
    picture = random.normal(SKY, NOISE, (side, side)).astype(np.float32)
    rows, columns = random.uniform(MARGIN, side - MARGIN, (2, stars))
    fluxes = 300 * random.pareto(1.5, stars) + 300
    offsets = np.arange(-6, 7)
    for row, column, flux in zip(rows, columns, fluxes, strict=True):
        y, x = int(row), int(column)
        vertical = np.exp(-((offsets + y - row) ** 2) / (2 * BLUR**2))
        horizontal = np.exp(-((offsets + x - column) ** 2) / (2 * BLUR**2))
        stamp = np.outer(vertical, horizontal) * (flux / (2 * np.pi * BLUR**2))
        picture[y - 6 : y + 7, x - 6 : x + 7] += stamp
    return picture


def tiles(picture):
    """The picture in tiles with a margin, and where in the picture each begins."""
    side = len(picture)
    framed = np.pad(picture, MARGIN, mode="reflect")
    for y in range(0, side, TILE):
        for x in range(0, side, TILE):
            yield y, x, framed[y : y + TILE + 2 * MARGIN, x : x + TILE + 2 * MARGIN].copy()


def detect(tile):
    """The stars of a tile: rows of y, x and peak, in pixels of the picture."""
    top, left, pixels = tile
    background = np.median(pixels)
    noise = 1.4826 * np.median(np.abs(pixels - background))
    smooth = sum(np.roll(pixels, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    neighbours = [np.roll(smooth, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    peaks = (smooth > background + 3 * noise) & (smooth > np.max(neighbours, axis=0))
    y, x = np.nonzero(peaks[MARGIN:-MARGIN, MARGIN:-MARGIN])
    return np.column_stack([y + top, x + left, smooth[y + MARGIN, x + MARGIN] - background])


def measure(work, answers, counts_file, lock):
    """Measure the stars on one queue, answer on the other, until None comes."""
    counts = np.memmap(counts_file, dtype=np.int64, mode="r+", shape=BRIGHTNESSES)
    offsets = np.arange(-MARGIN, MARGIN + 1)
    while (star := work.get()) is not None:
        number, pixels = star
        light = pixels - np.median(pixels)
        flux = float(light[3:-3, 3:-3].sum())
        weights = np.clip(light, 0, None)
        total = float(weights.sum()) or 1.0
        dy = float((weights.sum(axis=1) * offsets).sum()) / total
        dx = float((weights.sum(axis=0) * offsets).sum()) / total
        answers.put((number, round(flux, 3), round(dy, 4), round(dx, 4)))
        brightness = min(BRIGHTNESSES - 1, max(0, int(np.log2(max(flux, 1.0)))))
        with lock:
            counts[brightness] += 1


def survey(seed, side, stars, processes):
    """The answer, and the seconds of each stage."""
    picture = draw_sky(seed, side, stars)
    began = time.perf_counter()
    with multiprocessing.Pool(processes) as pool:
        found = np.concatenate(list(pool.imap_unordered(detect, tiles(picture))))
        pool.close()
        pool.join()
    # They come in the order in which the workers got ready.
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    detected = time.perf_counter()

    work, answers, lock = multiprocessing.Queue(), multiprocessing.Queue(), multiprocessing.Lock()
    with tempfile.TemporaryDirectory() as folder:
        counts_file = str(Path(folder, "counts"))
        counts = np.memmap(counts_file, dtype=np.int64, mode="w+", shape=BRIGHTNESSES)
        crew = [
            multiprocessing.Process(target=measure, args=(work, answers, counts_file, lock)) for _ in range(processes)
        ]
        for process in crew:
            process.start()
        framed = np.pad(picture, MARGIN, mode="reflect")
        for number, (y, x) in enumerate(found[:, :2].astype(int)):
            work.put((number, framed[y : y + 2 * MARGIN + 1, x : x + 2 * MARGIN + 1].copy()))
        for _ in crew:
            work.put(None)
        catalogue = sorted(answers.get() for _ in found)
        for process in crew:
            process.join()
        brightnesses = counts.tolist()
    ended = time.perf_counter()

    digest = hashlib.sha256(repr(catalogue).encode()).hexdigest()
    answer = {"stars": len(found), "brightnesses": brightnesses, "catalogue": digest[:16]}
    return answer, {"detection": detected - began, "measurement": ended - detected}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=multiprocessing.get_all_start_methods(), help="start method")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--side", type=int, default=SIDE, help="of the picture, in pixels")
    parser.add_argument("--stars", type=int, default=STARS)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    if options.method:
        multiprocessing.set_start_method(options.method)
    answer, seconds = survey(options.seed, options.side, options.stars, options.processes)
    print(json.dumps({"answer": answer, "seconds": seconds}))


if __name__ == "__main__":
    main()
