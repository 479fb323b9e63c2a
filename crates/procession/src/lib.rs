//! Processes instead of threads: Python's `multiprocessing` for Rust programs.
