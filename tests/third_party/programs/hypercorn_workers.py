"""hypercorn with two worker processes."""

from servers import serve

if __name__ == "__main__":
    serve(["-m", "hypercorn", "--workers", "2", "--bind", "127.0.0.1:{port}", "servers:application"])
