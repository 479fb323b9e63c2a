"""parsl's two local executors: threads, and processes that it starts by interchange and manager."""

import os
import tempfile

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider


@parsl.python_app
def square(number):
    return number * number


@parsl.python_app
def fail():
    raise ValueError("on purpose")


@parsl.bash_app
def echo(text, stdout=None):
    return f"echo {text}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        processes = HighThroughputExecutor(
            label="processes",
            address="127.0.0.1",
            max_workers_per_node=2,
            encrypted=False,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        for executor in (ThreadPoolExecutor(max_threads=2, label="threads"), processes):
            with parsl.load(Config(executors=[executor], run_dir=folder, usage_tracking=0)):
                print(executor.label, [square(number).result() for number in range(5)])
                try:
                    fail().result()
                except ValueError as error:
                    print("error", error)
                echo("said", stdout=f"{folder}/{executor.label}").result()
                print(open(f"{folder}/{executor.label}").read().strip())
            parsl.clear()
