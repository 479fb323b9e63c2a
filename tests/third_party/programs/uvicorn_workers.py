"""uvicorn with two worker processes."""

from servers import serve

if __name__ == "__main__":
    serve(["-m", "uvicorn", "--workers", "2", "--port", "{port}", "--log-level", "warning", "servers:application"])
