"""billiard has its own copy of the whole package; both are in one program."""

import multiprocessing

import billiard


def square(number):
    return number * number


if __name__ == "__main__":
    with billiard.Pool(2) as theirs, multiprocessing.Pool(2) as ours:
        print(theirs.map(square, range(5)), ours.map(square, range(5)))
    process = billiard.Process(target=square, args=(1,))
    process.start()
    process.join()
    print("exit code", process.exitcode)
