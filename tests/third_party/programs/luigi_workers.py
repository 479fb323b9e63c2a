"""luigi with two worker processes."""

import os
import tempfile

import luigi


class Part(luigi.Task):
    folder, number = luigi.Parameter(), luigi.IntParameter()

    def output(self):
        return luigi.LocalTarget(f"{self.folder}/{self.number}")

    def run(self):
        with self.output().open("w") as file:
            file.write(str(os.getpid()))


class All(Part):
    def requires(self):
        return [Part(self.folder, number) for number in range(1, 6)]


class Failing(Part):
    def run(self):
        raise ValueError("on purpose")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        told = {"workers": 2, "local_scheduler": True, "detailed_summary": True, "log_level": "CRITICAL"}
        print(luigi.build([All(folder, 0)], **told).status)
        pids = {open(f"{folder}/{number}").read() for number in range(6)}
        print("other processes:", str(os.getpid()) not in pids)
        print(luigi.build([Failing(folder, 9), Part(folder, 10)], **told).status)
