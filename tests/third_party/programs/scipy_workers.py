"""scipy's optimizers and integrators over a pool of theirs or of the caller."""

import multiprocessing

import numpy
from scipy.fft import fft
from scipy.integrate import quad_vec
from scipy.optimize import brute, differential_evolution, rosen


def wave(number):
    return numpy.sin(number * numpy.arange(1, 4))


if __name__ == "__main__":
    bounds = [(0, 2), (0, 2)]
    found = differential_evolution(rosen, bounds, workers=2, updating="deferred", rng=3, maxiter=15, polish=False)
    same = differential_evolution(rosen, bounds, updating="deferred", rng=3, maxiter=15, polish=False)
    print(numpy.array_equal(found.x, same.x))
    print(brute(rosen, bounds, Ns=10, workers=2, finish=None).round(3))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(brute(rosen, bounds, Ns=10, workers=pool.map, finish=None).round(3))
        print(quad_vec(wave, 0, 1, workers=pool.map)[0].round(6))
    print(abs(fft(numpy.eye(4), workers=2)).sum().round(3))
