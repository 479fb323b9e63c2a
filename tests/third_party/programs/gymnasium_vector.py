"""Environments in processes, which write their observations into shared arrays."""

import gymnasium
import numpy

STEPS = 20


def make(number):
    def environment():
        return gymnasium.make("CartPole-v1", max_episode_steps=10 + number)

    return environment


def run(environments, **arguments):
    vector = gymnasium.vector.AsyncVectorEnv([make(number) for number in range(environments)], **arguments)
    seen = [vector.reset(seed=3)[0].copy()]
    for step in range(STEPS):
        observation, reward, *_ = vector.step(numpy.full(environments, step % 2))
        seen.append(observation.copy())
    print(arguments, vector.call("max_episode_steps") if hasattr(vector, "max_episode_steps") else len(seen), reward)
    vector.close()
    return numpy.array(seen)


if __name__ == "__main__":
    runs = [run(2, shared_memory=shared, context=method) for shared in (True, False) for method in ("fork", "spawn")]
    print(all(numpy.array_equal(runs[0], other) for other in runs), float(runs[0].sum().round(4)))
