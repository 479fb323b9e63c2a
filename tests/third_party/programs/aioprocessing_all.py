"""Each object of aioprocessing, awaited, and a process that works on it."""

import asyncio

import aioprocessing


def produce(queue, lock, event, items):
    with lock:
        event.set()
        for item in items:
            queue.put(item + 5)
    queue.put(None)


def answer(pipe):
    pipe.send(pipe.recv() * 2)


def double(number):
    return number * 2


async def main():
    queue, lock, event = aioprocessing.AioQueue(), aioprocessing.AioLock(), aioprocessing.AioEvent()
    process = aioprocessing.AioProcess(target=produce, args=(queue, lock, event, [1, 2, 3]))
    process.start()
    await event.coro_wait()
    got = []
    while (item := await queue.coro_get()) is not None:
        got.append(item)
    async with lock:
        print("queue", got)
    await process.coro_join()
    print("exit code", process.exitcode)

    here, there = aioprocessing.AioPipe()
    process = aioprocessing.AioProcess(target=answer, args=(there,))
    process.start()
    await here.coro_send(21)
    print("pipe", await here.coro_recv())
    await process.coro_join()

    pool = aioprocessing.AioPool(2)
    print("pool", await pool.coro_map(double, range(5)))
    pool.close()
    await pool.coro_join()

    manager = aioprocessing.AioManager()
    managed = manager.AioQueue()
    await managed.coro_put("managed")
    print("manager", await managed.coro_get())
    shared = manager.dict({"a": 1})
    await manager.AioLock().coro_acquire()
    print(dict(shared))
    manager.shutdown()

    semaphore = aioprocessing.AioSemaphore(1)
    print("semaphore", await semaphore.coro_acquire(), await semaphore.coro_acquire(timeout=0.1))


if __name__ == "__main__":
    asyncio.run(main())
