"""Processes and a pool whose tasks are coroutines."""

import asyncio
import multiprocessing

import aiomultiprocess


async def square(number):
    await asyncio.sleep(0.01)
    return number * number


async def put(queue, what):
    queue.put(what)


async def main():
    queue = multiprocessing.get_context("spawn").Queue()
    process = aiomultiprocess.Process(target=put, args=(queue, "from a process"))
    process.start()
    print(queue.get())
    await process.join()
    print("exit code", process.exitcode)
    print("worker's result", await aiomultiprocess.Worker(target=square, args=(9,)))
    async with aiomultiprocess.Pool(2) as pool:
        print("map", await pool.map(square, range(10)))
        print("apply", await pool.apply(square, (7,)))


if __name__ == "__main__":
    asyncio.run(main())
