"""The deaths, and what else makes programs with `multiprocessing` hang, that procession promises to get over.

Each row has one test, `test_<name of the row>`, most of them in this folder, which holds what procession does; its
docstring says what the standard package and its peers do there. `make deaths-table` shows it: it tries each row on all
of them, and writes the table in docs/reliability.md. The tests of the Rust face bear the same names.
"""

# What the row is about, as the table says it.
POOL = {
    "task_kills_its_worker": "a task's worker is killed (SIGKILL)",
    "task_exits_its_worker": "a task calls `os._exit(0)`",
    "task_raises_base_exception": "a task raises a `BaseException`",
    "task_raises_keyboard_interrupt": "a task raises `KeyboardInterrupt`",
    "task_calls_sys_exit": "a task calls `sys.exit(3)`",
    "exception_wants_other_arguments": "an exception whose `__init__` wants two arguments",
    "result_cannot_be_pickled": "a result that can't be pickled",
    "result_cannot_be_unpickled": "a result that can't be unpickled",
    "argument_cannot_be_pickled": "an argument that can't be pickled",
    "argument_cannot_be_unpickled": "an argument that can't be unpickled",
    "worker_killed_while_it_waits": "all workers are killed while they wait for tasks",
    "worker_killed_while_taking": "a worker is killed as it takes a task",
    "worker_killed_while_publishing": "workers are killed as they send 32 MB results",
    "worker_killed_at_start": "the first two workers are killed as they start",
    "initializer_keeps_dying": "the initializer always kills its worker",
    "initializer_keeps_failing": "the initializer always raises",
    "map_loses_a_worker": "`map` over 8 items, one kills its worker",
    "stream_loses_a_worker": "`imap` over 8 items, one kills its worker",
    "callback_raises": "a callback raises",
    "callback_waits_for_a_dead_worker": "a callback waits for a task whose worker dies",
    "close_after_a_death": "close and join with a task lost",
    "close_in_a_signal_handler": "close in a signal handler, while a task is waited for",
    "terminate_with_a_stuck_worker": "terminate while a task ignores SIGTERM",
    "terminate_with_a_stopped_worker": "terminate while a worker is stopped (SIGSTOP)",
    "terminate_while_others_wait": "terminate while a thread waits for a result",
    "exit_with_a_busy_pool": "the program's end while a task ignores SIGTERM",
    "program_killed_with_busy_workers": "the program is killed: do busy workers end?",
    "ctrl_c": "Ctrl-C: how many tracebacks, does all end?",
    "each_task_its_own_worker": "60 tasks with a new worker for each",
    "endless_iterable": "items taken of 20,000 after one result and 1 s",
}

EXTRAS = {
    "time_limit": "a limit of 1 s on a task of 60 s",
    "time_limit_ignores_signals": "the same, and the task ignores all signals",
    "soft_time_limit": "an exception inside the task after 1 s",
    "cancel_a_running_task": "a running task is cancelled",
    "cancel_takes_no_other_task": "50 running tasks are cancelled: do the others finish?",
    "task_kills_worker_after_worker": "a task with 2 retries kills each of its workers",
    "retry_succeeds": "a task with 2 retries kills its first worker",
    "pool_in_a_task": "a pool inside a task",
    "tree_dies_with_its_root": "the program is killed: does a task's own child end?",
    "lambda_task": "a lambda as a task",
}

PRIMITIVES = {
    "lock_holder_killed": "`Lock`: the holder is killed",
    "rlock_holder_killed": "`RLock`: the holder is killed",
    "semaphore_holder_killed": "`Semaphore`: the holder is killed",
    "condition_holder_killed": "`Condition`: the holder is killed",
    "condition_waiter_killed": "`Condition.notify_all` after a waiter was killed",
    "event_waiter_killed": "`Event.set` after a waiter was killed",
    "event_set_in_a_signal_handler": "`Event.set` in a signal handler, while the event is waited for",
    "barrier_waiter_killed": "`Barrier.wait` after a waiter was killed",
    "queue_getter_killed": "`Queue`: killed in `get`",
    "queue_putter_killed": "`Queue`: killed in the midst of a message, then `get(timeout=2)`",
    "queue_put_then_killed": "`Queue`: killed after `put` has returned",
    "simple_queue_getter_killed": "`SimpleQueue`: killed in `get`",
    "joinable_queue_consumer_killed": "`JoinableQueue.join` after the consumer was killed with an item",
    "queue_joined_before_it_is_drained": "`Process.join` before its 1 MB was taken from the queue",
    "pipe_writer_killed": "`Pipe`: killed in the midst of a message",
    "manager_lock_holder_killed": "a manager's `Lock`: the holder is killed",
    "manager_condition_waiter_killed": "a manager's `Condition.notify`: the waiter is killed",
    "manager_server_killed": "a manager's server is killed while a client waits",
}

PROGRAMS = {
    "exit_with_a_stuck_child": "the program's end with a daemon that ignores SIGTERM",
    "fork_server_killed": "the fork server is killed: does the next start work?",
    "tracker_killed": "the resource tracker is killed: does the next segment work?",
    "segment_of_a_killed_program": "named memory of a program that was killed: is it removed?",
    "fork_while_threads_use_a_queue": "fork while threads use a queue: does the child use it?",
    "threads_join_one_process": "20 threads join one process: does each see its exit code?",
}

GROUPS = {
    "Pools": POOL,
    "Pools: limits, cancelling, retries, nesting": EXTRAS,
    "Locks, queues, pipes, managers": PRIMITIVES,
    "Programs": PROGRAMS,
}
ROWS = {name: title for rows in GROUPS.values() for name, title in rows.items()}
