"""Sampling by a pool of processes."""

import multiprocessing

import emcee
import numpy


def log_probability(theta):
    return -0.5 * numpy.sum(theta**2)


if __name__ == "__main__":
    start = numpy.random.default_rng(1).normal(size=(16, 3))
    chains = []
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            sampler = emcee.EnsembleSampler(16, 3, log_probability, pool=pool)
            sampler.random_state = numpy.random.RandomState(7).get_state()
            sampler.run_mcmc(start, 20)
            chains.append(sampler.get_chain())
    print(chains[0].shape, numpy.array_equal(*chains), float(chains[0].sum().round(9)))
