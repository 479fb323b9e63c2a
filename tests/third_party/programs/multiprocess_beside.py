"""multiprocess has its own copy of the whole package, with dill; both are in one program."""

import multiprocessing

import multiprocess


def square(number):
    return number * number


if __name__ == "__main__":
    with multiprocess.Pool(2) as theirs, multiprocessing.Pool(2) as ours:
        print(theirs.map(lambda number: number * number, range(5)), ours.map(square, range(5)))
    with multiprocess.Manager() as theirs, multiprocessing.Manager() as ours:
        print(theirs.list([1]), ours.list([2]))
