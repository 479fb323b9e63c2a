"""sanic with two worker processes, which its manager watches."""

from servers import serve

if __name__ == "__main__":
    serve(["-m", "sanic", "servers:make_sanic", "--factory", "--workers", "2", "--port", "{port}", "--no-motd"])
