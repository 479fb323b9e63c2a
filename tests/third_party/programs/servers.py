"""An application for servers of several worker processes, and what they are asked."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await receive()
    body = b"%d %d" % (os.getpid(), os.getppid())
    headers = [(b"connection", b"close"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [b"%d %d" % (os.getpid(), os.getppid())]


def make_sanic():
    import sanic

    app = sanic.Sanic("served")

    @app.get("/")
    async def answer(request):
        return sanic.response.text(f"{os.getpid()} {os.getppid()}", headers={"connection": "close"})

    return app


def ask(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        return tuple(int(number) for number in response.read().split())


def ask_until(port, wanted, seconds=60):
    """The answers, until they are what is wanted or time is over."""
    answers, end = set(), time.monotonic() + seconds
    while not wanted(answers) and time.monotonic() < end:
        try:
            answers.add(ask(port))
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
    return answers


def serve(arguments):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, *(argument.format(port=port) for argument in arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        answers = ask_until(port, lambda answers: len({pid for pid, _ in answers}) == 2)
        workers = {pid for pid, _ in answers}
        print(len(workers), "workers answered")
        print("none is the server itself:", server.pid not in workers)
        killed = max(workers)
        os.kill(killed, signal.SIGKILL)
        left = ask_until(port, lambda answers: any(pid not in workers for pid, _ in answers), 30)
        print("answered after one was killed:", bool(left - {(killed, server.pid)}))
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            print("exit status", server.wait(30))
        except subprocess.TimeoutExpired:
            server.kill()
            print("did not end")
    end = time.monotonic() + 10
    while (alive := [pid for pid in workers if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < end:
        time.sleep(0.1)
    print(len(alive), "workers left")
