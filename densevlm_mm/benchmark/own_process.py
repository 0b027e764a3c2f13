"""What is measured in a process of its own: nothing that others do to memory reaches it."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

# In the process of a resident, that resident.
_resident: Any = None


class Resident:
    """An object that lives in a fresh process, which ends with the block that it is entered by.

    A manager of `multiprocessing` would run its methods in threads, to which glibc gives memory of their own.

    Args:
        make: Makes it there; one that can be imported.
        args: Its arguments, which can be pickled.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        self._pool = _one_process()
        try:
            self._pool.submit(_run, _settle, make, args).result()
        except BaseException:
            self._pool.shutdown()
            raise

    def __enter__(self) -> Resident:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method there; what it is given and returns can be pickled, what it raises is raised here.

        Raises:
            RuntimeError: With the whole traceback as its message, for an exception that cannot be pickled.
        """
        return self._pool.submit(_run, _answer, method, args).result()


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """Result of a function in a fresh process, whose peak of memory is that of the function alone.

    Args:
        function: One that can be imported.
        args: Its arguments, which can be pickled.

    Raises:
        RuntimeError: See `Resident.ask`.
    """
    with _one_process() as pool:
        return pool.submit(_run, function, *args).result()


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context('spawn'))


def _run(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f'in a process of its own:\n{"".join(traceback.format_exception(error))}') from None
        raise


def _settle(make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    global _resident
    _resident = make(*args)


def _answer(method: str, args: tuple[Any, ...]) -> Any:
    return getattr(_resident, method)(*args)
