"""gunicorn with two workers that are uvicorn's, which use no multiprocessing, in a program that does."""

from servers import serve

if __name__ == "__main__":
    serve(["-m", "gunicorn", "-w", "2", "-b", "127.0.0.1:{port}", "--no-control-socket", "servers:wsgi"])
